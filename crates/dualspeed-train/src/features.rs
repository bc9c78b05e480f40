//! Features of a frozen tower, computed once per image and kept on the host.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use burn::tensor::{DType, Element, Shape, Tensor, TensorPrimitive};
use dualspeed_data::{DataError, Example, ExampleSource, HostImage, MemorySource};
use dualspeed_model::{Geometry, Needs, VisionFeatures, VisionTower};
use dualspeed_ops::Backend;
use rayon::prelude::*;

use crate::error::TrainError;
use crate::metrics::progress_bar;

/// Rows of one kind of feature, image after image, in the tower's type, with the shape of one image's rows.
#[derive(Clone, Debug)]
struct Rows {
    shape: [usize; 2],
    dtype: DType,
    bytes: Vec<u8>,
}

impl Default for Rows {
    fn default() -> Self {
        Self { shape: [0, 0], dtype: DType::F32, bytes: Vec::new() }
    }
}

/// Host features by image key, and the examples they belong to without their pixels.
#[derive(Clone, Debug)]
pub struct FeatureCache {
    index: HashMap<u64, usize>,
    geometry: Geometry,
    hidden: Rows,
    others: BTreeMap<&'static str, Rows>,
    source: Arc<MemorySource>,
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
        let begin = Instant::now();
        let batch = batch.max(1);
        let bar = progress_bar(source.len() as u64, progress, "features");
        let mut cache = Self {
            index: HashMap::new(),
            geometry: tower.geometry(),
            hidden: Rows::default(),
            others: BTreeMap::new(),
            source: Arc::new(MemorySource::new(Vec::new(), source.fingerprint())),
            seconds: 0.0,
        };
        let (sender, receiver) = sync_channel::<Result<Vec<Example>, DataError>>(2);
        let renderer = {
            let source = source.clone();
            std::thread::spawn(move || {
                for start in (0..source.len()).step_by(batch) {
                    let end = (start + batch).min(source.len());
                    let made =
                        (start..end).into_par_iter().map(|index| source.get(index)).collect();
                    // The receiver is gone after an error.
                    if sender.send(made).is_err() {
                        return;
                    }
                }
            })
        };
        let mut examples = Vec::with_capacity(source.len());
        let mut pending: Vec<Arc<HostImage>> = Vec::new();
        for made in receiver {
            let made = made?;
            bar.inc(made.len() as u64);
            for mut example in made {
                for image in &mut example.images {
                    if !cache.index.contains_key(&image.key) {
                        cache.index.insert(image.key, cache.index.len());
                        pending.push(image.clone());
                    }
                    *image = Arc::new(HostImage {
                        key: image.key,
                        size: image.size,
                        pixels: Vec::new(),
                    });
                }
                examples.push(example);
            }
            while pending.len() >= batch {
                let rest = pending.split_off(batch);
                cache.run(tower, &std::mem::replace(&mut pending, rest), needs, device);
            }
        }
        if !pending.is_empty() {
            cache.run(tower, &pending, needs, device);
        }
        if renderer.join().is_err() || examples.len() != source.len() {
            return Err(TrainError::Thread { what: "rendering" });
        }
        bar.finish_and_clear();
        cache.source = Arc::new(MemorySource::new(examples, source.fingerprint()));
        cache.seconds = begin.elapsed().as_secs_f64();
        Ok(cache)
    }

    fn run<B: Backend, T: VisionTower<B>>(
        &mut self,
        tower: &T,
        images: &[Arc<HostImage>],
        needs: Needs,
        device: &B::Device,
    ) {
        let features = tower.features(pixel_values(images, device), needs);
        for (name, feature) in features.named() {
            match name {
                "hidden" => self.hidden.extend(feature),
                _ => self.others.entry(name).or_default().extend(feature),
            }
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The tower's sizes.
    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Seconds it took, rendering included.
    pub fn seconds(&self) -> f64 {
        self.seconds
    }

    /// Bytes of host memory the rows take.
    pub fn bytes(&self) -> usize {
        let others: usize = self.others.values().map(|rows| rows.bytes.len()).sum();
        self.hidden.bytes.len() + others
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
        needs: Needs,
        device: &B::Device,
    ) -> Option<VisionFeatures<B>> {
        let rows: Option<Vec<usize>> =
            images.iter().map(|image| self.index.get(&image.key).copied()).collect();
        let rows = rows?;
        let other = |wanted: bool, name| {
            self.others.get(name).filter(|_| wanted).map(|kept| kept.gather(&rows, device))
        };
        Some(VisionFeatures {
            hidden: self.hidden.gather(&rows, device),
            cls_attention: other(needs.cls_attention, "cls_attention"),
            keys: other(needs.keys, "keys"),
            patch_text: other(needs.patch_text, "patch_text"),
            cls_hidden: other(needs.cls_hidden, "cls_hidden"),
            last_cls_attention: other(needs.last_layer, "last_cls_attention"),
            last_keys: other(needs.last_layer, "last_keys"),
        })
    }
}

impl Rows {
    fn extend<B: Backend>(&mut self, feature: Tensor<B, 3>) {
        let [_, rows, width] = feature.dims();
        let data = feature.into_data();
        (self.shape, self.dtype) = ([rows, width], data.dtype);
        self.bytes.extend_from_slice(data.as_bytes());
    }

    fn gather<B: Backend>(&self, rows: &[usize], device: &B::Device) -> Tensor<B, 3> {
        let [n, width] = self.shape;
        let size = n * width * self.dtype.size();
        let parts: Vec<&[u8]> =
            rows.iter().map(|row| &self.bytes[row * size..(row + 1) * size]).collect();
        let shape = Shape::new([rows.len(), n, width]);
        let features = B::upload(&parts, shape, self.dtype, device);
        Tensor::from_primitive(TensorPrimitive::Float(features))
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
