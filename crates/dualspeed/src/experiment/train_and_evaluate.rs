//! One training on an experiment's data, and its evaluation.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use dualspeed_data::ExampleSource;
use dualspeed_model::View;
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::{
    EvalOptions, EvalReport, EvalView, FeatureCache, Progress, TrainConfig, TrainJob, evaluate,
    train,
};

use super::experiment_data::ExperimentData;
use super::result::RunResult;
use super::scenes::{scene_config, test_source};
use super::views::evaluation_views;
use crate::extensions::{Extensions, doors, parts, registry, sources};
use crate::files::write_json;
use crate::interrupt::{Interrupted, Training};

impl<B: AutodiffBackend> ExperimentData<B> {
    /// Trains the configuration of the arm `name` in the run directory `dir`, evaluates the model, and writes `result.json`.
    ///
    /// # Errors
    /// Whatever training or evaluation reports; [`Interrupted`] after a signal.
    pub fn train_and_evaluate<E: Extensions>(
        &self,
        name: &str,
        config: &TrainConfig,
        dir: &Path,
        overwrite: bool,
    ) -> anyhow::Result<RunResult> {
        let model = config.model.init_with::<B>(&parts::<B, E>(), &self.device, config.seed)?;
        let model = model.with_vision_tower(self.tower.clone())?;
        let text_only = scene_config(config)?.text_only;
        let source = match text_only {
            true => config.data.train.open(
                &config.model,
                config.seed,
                config.compat,
                &sources::<E>(),
            )?,
            false => self.train.source(),
        };
        let training = Training::begin();
        let job = TrainJob {
            features: (!text_only).then(|| Arc::new(self.train.clone())),
            overwrite,
            progress: if self.progress { Progress::Bar } else { Progress::Silent },
            interrupt: self.interrupt.clone(),
            begun: training.begun.clone(),
            doors: doors::<B, E>(&self.device),
            ..TrainJob::new(config.clone(), model, source, dir)
        };
        let outcome = train(job);
        drop(training);
        let outcome = outcome?;
        // Also when the signal came with the last step.
        if outcome.interrupted || self.interrupt.load(Ordering::SeqCst) {
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
            (score(&self.test, &evaluation_views(config))?, score(&self.held_out, &full)?)
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
        write_json(&dir.join("result.json"), &result)?;
        Ok(result)
    }
}
