//! Features of a frozen tower, computed once per image: kept on the host, or in a folder that runs share.
//!
//! | module | concept |
//! |---|---|
//! | `rows`, `block` | rows of features in memory, or in a mapped shard |
//! | `shard` | one file of rows and its index |
//! | [`store`] | [`FeatureStore`]: the folder |
//! | `fingerprint` | [`tower_fingerprint`]: which tower's features these are |
//! | `configured` | [`configured`]: what the section `[data.features]` asks for |

mod block;
mod configured;
mod fingerprint;
mod rows;
mod shard;
pub mod store;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use burn::tensor::{DType, Element, Shape, Tensor, TensorPrimitive};
use dualspeed_data::{DataError, Example, ExampleSource, HostImage, MemorySource, OnError};
use dualspeed_model::vision::features::HIDDEN;
use dualspeed_model::{Needs, VisionFeatures, VisionGeometry, VisionTower};
use dualspeed_ops::Backend;
use rayon::prelude::*;

pub use configured::{FeatureWork, cache_dir, configured};
pub use fingerprint::tower_fingerprint;
pub use store::FeatureStore;

use crate::error::TrainError;
use crate::metrics::progress_bar;
use crate::patience::{Awaited, receive};
use block::Block;
use rows::Rows;

/// Host features by image key, and the examples they belong to without their pixels.
#[derive(Clone, Debug)]
pub struct FeatureCache {
    /// Block and row of an image.
    index: HashMap<u64, (usize, usize)>,
    blocks: Vec<Block>,
    geometry: VisionGeometry,
    source: Arc<MemorySource>,
    computed: usize,
    seconds: f64,
}

impl FeatureCache {
    /// Runs `tower` over every image of `source` once, `batch` images at a time, without gradient.
    ///
    /// Samples are made by all CPU threads while the tower works on the images before. Equal images
    /// (equal keys) share a row. `needs` says which features beyond the hidden state are kept.
    ///
    /// # Errors
    /// The first sample that cannot be read.
    pub fn compute<B: Backend, T: VisionTower<B>>(
        tower: &T,
        source: &Arc<dyn ExampleSource>,
        needs: Needs,
        batch: usize,
        device: &B::Device,
        progress: bool,
    ) -> Result<Self, TrainError> {
        let work = FeatureWork::new(needs, batch, progress);
        Filling::new(tower, None, work, device).run(source)
    }

    /// As [`compute`](Self::compute), but only images that `store` does not have go through the tower, and what it makes
    /// of them goes into the store, shard by shard. Rows stay on disk and are mapped; at most one shard is in memory.
    /// The store must be the one of this tower, see [`tower_fingerprint`].
    ///
    /// # Errors
    /// The first sample that cannot be read, or a shard that cannot be written; shards written before stay.
    pub fn compute_stored<B: Backend, T: VisionTower<B>>(
        tower: &T,
        source: &Arc<dyn ExampleSource>,
        store: FeatureStore,
        batch: usize,
        device: &B::Device,
        progress: bool,
    ) -> Result<Self, TrainError> {
        let needs = store.needs().clone();
        let work = FeatureWork::new(needs, batch, progress);
        Filling::new(tower, Some(store), work, device).run(source)
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// Images that went through the tower; the others were in the store.
    pub fn computed(&self) -> usize {
        self.computed
    }

    /// The tower's sizes.
    pub fn geometry(&self) -> VisionGeometry {
        self.geometry
    }

    /// Seconds it took, rendering included.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Bytes of host memory the rows take; mapped rows take none that the system cannot have back.
    pub fn bytes(&self) -> usize {
        self.blocks.iter().map(Block::memory).sum()
    }

    /// The examples the cache was computed from, without pixels: a source that costs nothing to
    /// read.
    pub fn source(&self) -> Arc<dyn ExampleSource> {
        self.source.clone()
    }

    /// Features of `images` on the device, `[images, n, ..]`; `None` when an image has no row.
    pub fn features<B: Backend>(
        &self,
        images: &[Arc<HostImage>],
        needs: &Needs,
        device: &B::Device,
    ) -> Option<VisionFeatures<B>> {
        let places: Option<Vec<(usize, usize)>> =
            images.iter().map(|image| self.index.get(&image.key).copied()).collect();
        let places = places?;
        let hidden = VisionFeatures::new(self.gather(HIDDEN, &places, device)?);
        let wanted = needs.of_tower();
        Some(wanted.names().filter(|name| *name != HIDDEN).fold(hidden, |features, name| {
            features.with_some(name, self.gather(name, &places, device))
        }))
    }

    fn gather<B: Backend>(
        &self,
        kind: &str,
        places: &[(usize, usize)],
        device: &B::Device,
    ) -> Option<Tensor<B, 3>> {
        let layout = self.blocks.get(places.first()?.0)?.layout(kind)?;
        let parts: Option<Vec<&[u8]>> =
            places.iter().map(|(block, row)| self.blocks.get(*block)?.row(kind, *row)).collect();
        let [n, width] = layout.shape;
        let features =
            B::upload(&parts?, Shape::new([places.len(), n, width]), layout.dtype, device);
        Some(Tensor::from_primitive(TensorPrimitive::Float(features)))
    }
}

/// A sample on its way to the tower.
enum Made {
    Example(Example),
    /// Left out, with its id.
    Missing(String, DataError),
}

/// A cache while it is computed.
struct Filling<'a, B: Backend, T> {
    cache: FeatureCache,
    tower: &'a T,
    store: Option<FeatureStore>,
    work: FeatureWork<'a>,
    device: &'a B::Device,
    /// What will be the next block.
    rows: Rows,
    /// Images that wait for the tower, and their keys.
    pending: Vec<Arc<HostImage>>,
    known: HashSet<u64>,
}

impl<'a, B: Backend, T: VisionTower<B>> Filling<'a, B, T> {
    fn new(
        tower: &'a T,
        store: Option<FeatureStore>,
        work: FeatureWork<'a>,
        device: &'a B::Device,
    ) -> Self {
        let blocks =
            store.iter().flat_map(FeatureStore::shards).cloned().map(Block::Disk).collect();
        let cache = FeatureCache {
            index: HashMap::new(),
            blocks,
            geometry: tower.geometry(),
            source: Arc::new(MemorySource::new(Vec::new(), "")),
            computed: 0,
            seconds: 0.0,
        };
        let (rows, pending, known) = (Rows::default(), Vec::new(), HashSet::new());
        Self { cache, tower, store, work, device, rows, pending, known }
    }

    /// Everything; the tower runs on this thread, samples are made on others.
    fn run(mut self, source: &Arc<dyn ExampleSource>) -> Result<FeatureCache, TrainError> {
        let begin = Instant::now();
        let batch = self.work.batch.max(1);
        let samples = source.len().min(self.work.samples);
        let bar = progress_bar(samples as u64, self.work.progress, "features");
        let (sender, receiver) = sync_channel::<Result<Vec<Made>, DataError>>(2);
        let on_error = self.work.on_error;
        let renderer = {
            let source = source.clone();
            std::thread::spawn(move || {
                for start in (0..samples).step_by(batch) {
                    let end = (start + batch).min(samples);
                    let made = (start..end)
                        .into_par_iter()
                        .map(|index| match source.get(index) {
                            Ok(example) => Ok(Made::Example(example)),
                            Err(error) if on_error == OnError::Skip => {
                                Ok(Made::Missing(source.id(index), error))
                            }
                            Err(error) => Err(error),
                        })
                        .collect();
                    // The receiver is gone after an error.
                    if sender.send(made).is_err() {
                        return;
                    }
                }
            })
        };
        let mut examples = Vec::with_capacity(samples);
        let mut missing = BTreeMap::new();
        let stop = self.work.interrupt;
        loop {
            let made = match receive(&receiver, stop, "samples for features") {
                Awaited::Item(made) => made?,
                Awaited::Closed => break,
                Awaited::Stopped => {
                    self.close_block()?;
                    let done = examples.len();
                    return Err(TrainError::FeaturesInterrupted { done, of: samples });
                }
            };
            bar.inc(made.len() as u64);
            for made in made {
                let mut example = match made {
                    Made::Example(example) => example,
                    Made::Missing(id, error) => {
                        missing.insert(examples.len(), Arc::new(error));
                        Example { id, ..Example::default() }
                    }
                };
                for image in &mut example.images {
                    self.add(image);
                    let (key, size) = (image.key, image.size);
                    *image = Arc::new(HostImage { key, size, pixels: Vec::new() });
                }
                examples.push(example);
            }
            while self.pending.len() >= batch {
                self.compute(batch)?;
            }
            let stopped = stop.is_some_and(|flag| flag.load(Ordering::SeqCst));
            if stopped && examples.len() < samples {
                self.close_block()?;
                return Err(TrainError::FeaturesInterrupted { done: examples.len(), of: samples });
            }
        }
        self.compute(self.pending.len())?;
        self.close_block()?;
        if renderer.join().is_err() || examples.len() != samples {
            return Err(TrainError::Thread { what: "rendering" });
        }
        bar.finish_and_clear();
        let fingerprint = match samples == source.len() {
            true => source.fingerprint(),
            false => format!("{}-first-{samples}", source.fingerprint()),
        };
        self.cache.source =
            Arc::new(MemorySource::new(examples, fingerprint).with_missing(missing));
        self.cache.seconds = begin.elapsed().as_secs_f64();
        Ok(self.cache)
    }

    /// Finds an image's place, or puts it down for the tower.
    fn add(&mut self, image: &Arc<HostImage>) {
        if self.cache.index.contains_key(&image.key) || self.known.contains(&image.key) {
            return;
        }
        match self.store.as_ref().and_then(|store| store.find(image.key)) {
            Some(place) => {
                self.cache.index.insert(image.key, place);
            }
            None => {
                self.known.insert(image.key);
                self.pending.push(image.clone());
            }
        }
    }

    /// Runs the tower over the first `count` pending images.
    fn compute(&mut self, count: usize) -> Result<(), TrainError> {
        let rest = self.pending.split_off(count);
        let mut images = std::mem::replace(&mut self.pending, rest);
        let Some(last) = images.last().cloned() else { return Ok(()) };
        // Products of other sizes round otherwise: the rest goes through the tower in a whole batch too.
        images.resize(count.max(self.work.batch), last);
        let pixels = pixel_values(&images, self.device);
        let mut features = self.tower.features(pixels, &self.work.needs);
        if images.len() > count {
            features = features.map(|_, feature| feature.narrow(0, 0, count));
            images.truncate(count);
        }
        let block = self.cache.blocks.len();
        for (row, image) in (self.rows.keys.len()..).zip(&images) {
            self.known.remove(&image.key);
            self.cache.index.insert(image.key, (block, row));
        }
        self.rows.push(images.iter().map(|image| image.key), &features);
        self.cache.computed += images.len();
        match self.store.as_ref().is_some_and(|store| store.is_full(&self.rows)) {
            true => self.close_block(),
            false => Ok(()),
        }
    }

    /// Makes a block of the rows; with a store, of the shard that has them.
    fn close_block(&mut self) -> Result<(), TrainError> {
        if self.rows.keys.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        self.cache.blocks.push(match &mut self.store {
            Some(store) => Block::Disk(store.append(&rows)?),
            None => Block::Memory(Arc::new(rows)),
        });
        Ok(())
    }
}

/// Pixels of host images as one tensor `[images, 3, size, size]`; the size is the first image's.
pub fn pixel_values<B: Backend>(images: &[Arc<HostImage>], device: &B::Device) -> Tensor<B, 4> {
    let size = images.first().map_or(0, |image| image.size);
    let parts: Vec<&[u8]> =
        images.iter().map(|image| bytemuck::cast_slice(&image.pixels)).collect();
    let shape = Shape::new([images.len(), 3, size, size]);
    let pixels = B::upload(&parts, shape, DType::F32, device);
    let pixels = Tensor::<B, 4>::from_primitive(TensorPrimitive::Float(pixels));
    pixels.cast(B::FloatElem::dtype())
}
