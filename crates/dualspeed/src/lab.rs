//! Data sets, tower features and one training-and-evaluation: what quickstart and ablations repeat.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::Context;
use dualspeed_data::{
    ExampleSource, SceneConfig, SceneSource, Split, Vendor, chance, source_registry,
};
use dualspeed_model::{Needs, Tower, View, Vit};
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::features::{FeatureWork, configured};
use dualspeed_train::{
    EvalOptions, EvalReport, EvalView, FeatureCache, Progress, TrainConfig, TrainJob, evaluate,
    train,
};
use serde::{Deserialize, Serialize};

use crate::extensions::{Extensions, registry};
use crate::tower;

/// The vendor whose drawings no model sees in training.
pub const HELD_OUT_VENDOR: Vendor = Vendor::Fluent;

/// Scenes for training and test with the frozen tower's features, shared by several trainings.
pub struct Lab<B: AutodiffBackend> {
    device: B::Device,
    tower: Vit<B>,
    train: FeatureCache,
    test: FeatureCache,
    held_out: FeatureCache,
    chance: f64,
    progress: bool,
    /// Set it to end a training after its current step.
    pub interrupt: Arc<AtomicBool>,
}

/// What one training gave; written as `result.json` into its run directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The arm's name.
    pub name: String,
    /// The seed.
    pub seed: u64,
    /// Test results in the views `full`, `pruned` and `pruned_no_isolator`.
    pub test: EvalReport,
    /// Full inference on the held-out vendor's drawings.
    pub held_out: EvalReport,
    /// Seconds of training.
    pub train_seconds: f64,
    /// Optimiser steps.
    pub steps: u64,
    /// Share of slow steps.
    pub slow_share: f64,
    /// Seconds of running the frozen tower over the training set, shared with other runs.
    pub featurise_seconds: f64,
    /// Accuracy of always giving the most frequent answer.
    pub chance: f64,
}

impl RunResult {
    /// Accuracy in a view; 0 if it was not evaluated.
    pub fn accuracy(&self, view: &str) -> f64 {
        self.test.view(view).map_or(0.0, |v| v.accuracy)
    }

    /// Visual tokens per picture in a view.
    pub fn visual_tokens(&self, view: &str) -> f64 {
        self.test.view(view).map_or(0.0, |v| v.visual_tokens)
    }

    /// Accuracy by kind of question, full inference.
    pub fn by_kind(&self) -> BTreeMap<String, f64> {
        let kinds = self.test.view("full").map(|v| &v.by_kind);
        kinds.into_iter().flatten().map(|(k, a)| (k.name().to_string(), a.accuracy)).collect()
    }
}

/// The training was interrupted; its checkpoint is written.
#[derive(Debug, thiserror::Error)]
#[error("interrupted after step {step}; continue with `dualspeed train --resume {run}`")]
pub struct Interrupted {
    /// The step reached.
    pub step: u64,
    /// The run directory.
    pub run: String,
}

/// The scenes of `config` in another split, with `seed` unchanged.
pub fn scenes(config: &TrainConfig) -> anyhow::Result<SceneConfig> {
    config.data.train.scene_config().context(
        "this command composes its own test set and needs `data.train.scenes`, not `llava_json` or `source`",
    )
}

/// Test scenes belonging to `config`'s training scenes.
///
/// # Errors
/// If the data is not made of scenes.
pub fn test_source(config: &TrainConfig, samples: usize) -> anyhow::Result<SceneSource> {
    let scenes = SceneConfig { split: Split::Test, ..scenes(config)? };
    Ok(config.data.train.open_scenes(scenes, samples, &config.model)?)
}

/// The same test scenes in the held-out vendor's drawings.
///
/// # Errors
/// If the data is not made of scenes.
pub fn held_out_source(config: &TrainConfig, samples: usize) -> anyhow::Result<SceneSource> {
    let vendors = vec![HELD_OUT_VENDOR];
    let scenes = SceneConfig { split: Split::Test, vendors, ..scenes(config)? };
    Ok(config.data.train.open_scenes(scenes, samples, &config.model)?)
}

/// The three views every table shows: full, pruned as trained, pruned without the isolator.
pub fn views(config: &TrainConfig) -> Vec<EvalView> {
    let keep = config.keep_count(config.model.vision.num_tokens());
    vec![
        EvalView::new("full", View::Full),
        EvalView::new("pruned", View::Pruned { keep, isolator: config.isolator_active() }),
        EvalView::new("pruned_no_isolator", View::Pruned { keep, isolator: false }),
    ]
}

impl<B: AutodiffBackend> Lab<B> {
    /// Makes the data sets that `base` describes and runs the embedded tower over them.
    ///
    /// # Errors
    /// If the data is not made of scenes, or the model's tower is not the embedded one.
    pub fn new(
        base: &TrainConfig,
        test_samples: usize,
        needs: Needs,
        device: &B::Device,
        progress: bool,
    ) -> anyhow::Result<Self> {
        let tower: Vit<B> = tower::embedded(&base.model.vision, device)?;
        let inner: Vit<B::InnerBackend> = tower::embedded(&base.model.vision, device)?;
        let inner = Tower::from(inner);
        let cache = |source: Arc<dyn ExampleSource>| {
            let work =
                FeatureWork { needs, batch: 32, samples: usize::MAX, progress, interrupt: None };
            let kept = configured(&base.data.features, &inner, &source, work, device)?;
            // Several runs share them: in memory, unless the configuration says otherwise.
            kept.map_or_else(
                || FeatureCache::compute(&inner, &source, needs, work.batch, device, progress),
                Ok,
            )
        };
        let test = test_source(base, test_samples)?;
        let questions: Vec<_> = (0..test.len())
            .map(|index| test.get(index).map(|example| example.questions))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Self {
            train: cache(base.data.train.open(&base.model, base.seed, &source_registry())?)?,
            held_out: cache(Arc::new(held_out_source(base, test_samples)?))?,
            test: cache(Arc::new(test))?,
            chance: chance(questions.iter().flatten()).accuracy,
            device: device.clone(),
            tower,
            progress,
            interrupt: Arc::default(),
        })
    }

    /// Seconds of running the tower over the training set.
    pub fn featurise_seconds(&self) -> f64 {
        self.train.seconds()
    }

    /// Accuracy of always giving the most frequent answer of a question's kind.
    pub fn chance(&self) -> f64 {
        self.chance
    }

    /// Trains and evaluates one configuration, and writes `result.json` into `dir`.
    ///
    /// # Errors
    /// Whatever training or evaluation says; [`Interrupted`] after Ctrl-C.
    pub fn run<E: Extensions>(
        &self,
        name: &str,
        config: &TrainConfig,
        dir: &Path,
        overwrite: bool,
    ) -> anyhow::Result<RunResult> {
        let model = config.model.init::<B>(&self.device, config.seed)?;
        let model = model.with_vision_tower(self.tower.clone())?;
        let text_only = scenes(config)?.text_only;
        let source = match text_only {
            true => config.data.train.open(&config.model, config.seed, &source_registry())?,
            false => self.train.source(),
        };
        let job = TrainJob {
            features: (!text_only).then(|| Arc::new(self.train.clone())),
            overwrite,
            progress: if self.progress { Progress::Bar } else { Progress::Silent },
            interrupt: self.interrupt.clone(),
            pruners: registry::<B, E>(&self.device),
            ..TrainJob::new(config.clone(), model, source, dir)
        };
        let outcome = train(job)?;
        if outcome.interrupted {
            let run = dir.display().to_string();
            return Err(Interrupted { step: outcome.steps, run }.into());
        }
        let pruner = registry::<B::InnerBackend, E>(&self.device).build(&config.pruner())?;
        let options = EvalOptions { progress: self.progress, ..EvalOptions::default() };
        let score = |cache: &FeatureCache, views: &[EvalView]| {
            let (source, features) = (cache.source(), (!text_only).then_some(cache));
            let pruner = Some(&*pruner);
            evaluate(&outcome.model, &*source, features, views, pruner, &self.device, options)
        };
        let full = [EvalView::new("full", View::Full)];
        let (test, held_out) = if text_only {
            let test = test_source(config, self.test.source().len())?;
            let report = evaluate(&outcome.model, &test, None, &full, None, &self.device, options)?;
            (report, EvalReport::default())
        } else {
            (score(&self.test, &views(config))?, score(&self.held_out, &full)?)
        };
        let result = RunResult {
            name: name.into(),
            seed: config.seed,
            test,
            held_out,
            train_seconds: outcome.train_seconds,
            steps: outcome.steps,
            slow_share: outcome.totals.slow_share(),
            featurise_seconds: self.featurise_seconds(),
            chance: self.chance,
        };
        crate::run::write_json(&dir.join("result.json"), &result)?;
        Ok(result)
    }
}
