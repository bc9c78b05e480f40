//! Data sets and tower features that the trainings of an experiment share.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dualspeed_data::SourceRegistry;
use dualspeed_data::{ExampleSource, OnError, chance};
use dualspeed_model::{ClipVit, Needs, Tower};
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::features::{FeatureWork, configured};
use dualspeed_train::{FeatureCache, TrainConfig};

use super::scenes::{held_out_source, test_source};
use crate::embedded_tower;

/// Training and test scenes with the frozen tower's features of them, shared by all trainings of an experiment.
pub struct ExperimentData<B: AutodiffBackend> {
    pub(super) device: B::Device,
    pub(super) tower: ClipVit<B>,
    pub(super) train: FeatureCache,
    pub(super) test: FeatureCache,
    pub(super) held_out: FeatureCache,
    pub(super) chance: f64,
    pub(super) progress: bool,
    /// Set it to end a training after its current step.
    pub interrupt: Arc<AtomicBool>,
}

impl<B: AutodiffBackend> ExperimentData<B> {
    /// Makes the data sets that `base` describes and runs the embedded tower over them.
    ///
    /// # Errors
    /// If the data is not made of scenes, or the model's tower is not the embedded one.
    pub fn new(
        base: &TrainConfig,
        test_samples: usize,
        needs: &Needs,
        sources: &SourceRegistry,
        device: &B::Device,
        progress: bool,
    ) -> anyhow::Result<Self> {
        let tower: ClipVit<B> = embedded_tower::load(&base.model.vision, device)?;
        let inner: ClipVit<B::InnerBackend> = embedded_tower::load(&base.model.vision, device)?;
        let inner = Tower::from(inner);
        let cache = |source: Arc<dyn ExampleSource>| {
            let work = FeatureWork {
                needs: needs.clone(),
                batch: 32,
                samples: usize::MAX,
                progress,
                interrupt: None,
                on_error: OnError::Stop,
            };
            let batch = work.batch;
            let cache = configured(&base.data.features, &inner, &source, work, device)?;
            // Several runs share them: in memory, unless the configuration says otherwise.
            cache.map_or_else(
                || FeatureCache::compute(&inner, &source, needs.clone(), batch, device, progress),
                Ok,
            )
        };
        let test = test_source(base, test_samples)?;
        let questions: Vec<_> = (0..test.len())
            .map(|index| test.get(index).map(|example| example.questions))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            train: cache(base.data.train.open(&base.model, base.seed, base.compat, sources)?)?,
            held_out: cache(Arc::new(held_out_source(base, test_samples)?))?,
            test: cache(Arc::new(test))?,
            chance: chance(questions.iter().flatten()).accuracy,
            device: device.clone(),
            tower,
            progress,
            interrupt: Arc::default(),
        })
    }

    /// Seconds of running the tower over the training scenes, once for all trainings.
    pub fn featurise_seconds(&self) -> f64 {
        self.train.seconds()
    }

    /// Accuracy of always giving the most frequent answer of a question's kind.
    pub fn chance(&self) -> f64 {
        self.chance
    }
}
