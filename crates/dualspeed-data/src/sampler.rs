//! Which examples make step `n`.
//!
//! Contract:
//!  - `indices(step)` is a pure function of (lengths, modalities, batch size, seed, grouping, step): any worker, any
//!    rank, and a run resumed at any step see the same batches without replaying the ones before.
//!  - Every example occurs exactly once per epoch. Nothing is dropped and nothing is repeated to fill a batch: what
//!    does not fill a batch makes a short one (at most one per epoch when shuffled, one per modality when grouped).
//!  - An epoch is reshuffled by its number.
//!  - Grouped batches are of one modality, so that no rank runs the vision tower while another does not, and of
//!    similar lengths, so that little is padded: examples are shuffled, cut into megabatches of [`MEGABATCH`] batches,
//!    and sorted by length within each; then the order of the batches is shuffled. (As in LLaVA's
//!    `LengthGroupedSampler` and prismatic-vlms' `SplitModalitySampler`, which mix or repeat the remainders.)

use std::sync::{Arc, Mutex, PoisonError};

use rand::seq::SliceRandom;
use serde::{Deserialize, Serialize};

use crate::rng;
use crate::source::{ExampleSource, Modality};

/// Batches per megabatch: large enough for similar lengths, small enough to stay random.
pub const MEGABATCH: usize = 50;

/// How examples are put together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grouping {
    /// Shuffled.
    #[default]
    Shuffled,
    /// Shuffled, with batches of one modality and of similar lengths.
    ModalityAndLength,
}

/// Batches of indices by step.
#[derive(Debug)]
pub struct BatchSampler {
    modalities: Vec<Modality>,
    lengths: Vec<usize>,
    batch_size: usize,
    seed: u64,
    grouping: Grouping,
    /// Where examples stand in the source by now; `None` where they stand as they did.
    places: Option<Vec<Option<usize>>>,
    /// The epoch last asked for; only saves work.
    cache: Mutex<Option<(u64, Arc<Vec<Vec<usize>>>)>>,
}

impl BatchSampler {
    /// Reads the modalities and lengths of `source` once. A `batch_size` of 0 counts as 1.
    pub fn new(
        source: &dyn ExampleSource,
        batch_size: usize,
        seed: u64,
        grouping: Grouping,
    ) -> Self {
        let shapes = Self::shapes(source, grouping);
        Self::of_shapes(shapes, batch_size, seed, grouping)
    }

    /// What the sampler reads of every example: modality and length, where `grouping` looks at them.
    pub fn shapes(source: &dyn ExampleSource, grouping: Grouping) -> Vec<(Modality, usize)> {
        let shape = |index| match grouping {
            Grouping::Shuffled => (Modality::Text, 0),
            Grouping::ModalityAndLength => (source.modality(index), source.length_hint(index)),
        };
        (0..source.len()).map(shape).collect()
    }

    /// As [`new`](Self::new), for examples of the given [`shapes`](Self::shapes).
    pub fn of_shapes(
        shapes: Vec<(Modality, usize)>,
        batch_size: usize,
        seed: u64,
        grouping: Grouping,
    ) -> Self {
        let (modalities, lengths) = shapes.into_iter().unzip();
        let (batch_size, places) = (batch_size.max(1), None);
        Self { modalities, lengths, batch_size, seed, grouping, places, cache: Mutex::new(None) }
    }

    /// The same order over a source that has changed: example `i` now stands at `places[i]`, or has been removed. A batch
    /// is short by what was removed of it; one of which nothing is left is the next one of its epoch.
    pub fn with_places(self, places: Vec<Option<usize>>) -> Self {
        Self { places: Some(places), cache: Mutex::new(None), ..self }
    }

    /// Number of batches in an epoch, short ones included.
    pub fn steps_per_epoch(&self) -> u64 {
        let images = self.modalities.iter().filter(|&&m| m == Modality::Image).count();
        let texts = self.modalities.len() - images;
        (images.div_ceil(self.batch_size) + texts.div_ceil(self.batch_size)) as u64
    }

    /// The examples of `step`, counted over all epochs from 0. Empty only if the source is.
    pub fn indices(&self, step: u64) -> Vec<usize> {
        let per_epoch = self.steps_per_epoch();
        if per_epoch == 0 {
            return Vec::new();
        }
        self.epoch(step / per_epoch)[(step % per_epoch) as usize].clone()
    }

    /// All batches of an epoch, in order.
    pub fn epoch(&self, epoch: u64) -> Arc<Vec<Vec<usize>>> {
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match &*cache {
            Some((cached, batches)) if *cached == epoch => batches.clone(),
            _ => {
                let batches = Arc::new(self.place(self.make_epoch(epoch)));
                *cache = Some((epoch, batches.clone()));
                batches
            }
        }
    }

    /// Puts what stands in the source now into the batches.
    fn place(&self, batches: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
        let Some(places) = &self.places else { return batches };
        let placed: Vec<Vec<usize>> = batches
            .iter()
            .map(|batch| batch.iter().filter_map(|&index| *places.get(index)?).collect())
            .collect();
        let following = |first: usize| placed.iter().cycle().skip(first).take(placed.len());
        (0..placed.len())
            .map(|at| following(at).find(|batch| !batch.is_empty()).cloned().unwrap_or_default())
            .collect()
    }

    fn make_epoch(&self, epoch: u64) -> Vec<Vec<usize>> {
        let mut rng = rng::stream(&[self.seed, epoch, 0x5a3b_1e2c]);
        let mut batches = Vec::new();
        for modality in [Modality::Image, Modality::Text] {
            let mut indices: Vec<usize> = (0..self.lengths.len())
                .filter(|&index| self.modalities[index] == modality)
                .collect();
            indices.shuffle(&mut rng);
            if self.grouping == Grouping::ModalityAndLength {
                for megabatch in indices.chunks_mut(MEGABATCH * self.batch_size) {
                    // Stable: equal lengths keep their shuffled order.
                    megabatch.sort_by_key(|&index| std::cmp::Reverse(self.lengths[index]));
                }
            }
            batches.extend(indices.chunks(self.batch_size).map(<[usize]>::to_vec));
        }
        if self.grouping == Grouping::ModalityAndLength {
            batches.shuffle(&mut rng);
        }
        batches
    }
}
