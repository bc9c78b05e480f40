//! What a run leaves on disk beside its records: checkpoints, also after an error, and validations.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::PoisonError;

use burn::module::AutodiffModule;
use burn_train::{EventProcessorTraining, InferenceStep, LearnerEvent, TrainingItem};
use dualspeed_ops::AutodiffBackend;

use super::run::Run;
use crate::checkpoint::{CheckpointState, HostTensor};
use crate::error::{SavedSteps, TrainError};
use crate::metrics::ValidationRecord;
use crate::optim::all_finite;
use crate::state::export_trainables;
use crate::step::ValidOutput;

impl<B: AutodiffBackend> Run<'_, B> {
    /// Saves all steps that are done and recorded, after `error` has ended the run; says what is saved.
    pub(super) fn rescue(&mut self, error: TrainError) -> TrainError {
        let this = self.strategy;
        if !this.save {
            return error;
        }
        if let Some(open) = self.open.take() {
            // Whatever becomes of it: the first error is the one to report.
            let finished = catch_unwind(AssertUnwindSafe(|| self.finish(open)));
            tracing::debug!(ok = finished.is_ok_and(|result| result.is_ok()), "the step in flight");
        }
        if this.begin.lock().unwrap_or_else(PoisonError::into_inner).is_some() {
            // Nothing of this run is on disk; what is there is another's.
            return error;
        }
        // A model with a step that has no record, or with half an update, is no state to go on from.
        let good = self.recorded == self.launched && !self.updating.get();
        if good && self.recorded > self.saved {
            let step = self.recorded;
            let saved = catch_unwind(AssertUnwindSafe(|| self.save(step)));
            match saved.unwrap_or_else(|panic| Err(TrainError::from_panic(&*panic))) {
                Ok(()) => self.saved = step,
                Err(error) => {
                    tracing::warn!("the {step} steps done cannot be saved: {error}");
                }
            }
        }
        let run = this.run_dir.clone();
        let newest = this.checkpoints.steps().ok().and_then(|steps| steps.last().copied());
        let saved = match newest {
            Some(step) if step == self.recorded => SavedSteps::All { step, run },
            Some(step) => SavedSteps::Until { step, done: self.recorded, run },
            None if self.recorded > 0 => SavedSteps::Nothing { done: self.recorded },
            None => return error,
        };
        TrainError::Ended { error: Box::new(error), saved }
    }

    /// Writes the checkpoint of `step`, which all steps before have led to.
    pub(super) fn save(&mut self, step: u64) -> Result<(), TrainError> {
        let this = self.strategy;
        // Records of a checkpoint's steps are on disk when it is.
        let logs = self.logs()?;
        logs.steps.sync()?;
        logs.validations.sync()?;
        let best =
            logs.validations.best(&this.checkpoints.steps()?, this.config.checkpoint.keep_best);
        let mut tensors: BTreeMap<String, HostTensor> = export_trainables(&self.model.llava);
        let mut updates = BTreeMap::new();
        let state = this.optim.state();
        for param in &self.strategy.params {
            let Some(moments) = state.moments.get(&param.id) else { continue };
            let host = moments.to_host();
            let (path, shape) = (&param.path, &param.shape);
            updates.insert(path.clone(), host.updates);
            let mut put = |kind: &str, values| {
                tensors.insert(
                    format!("optim.{kind}.{path}"),
                    HostTensor { shape: shape.clone(), values },
                );
            };
            put("m", host.m);
            put("v", host.v);
        }
        drop(state);
        if let Some((name, _)) = tensors.iter().find(|(_, tensor)| !all_finite(&tensor.values)) {
            return Err(TrainError::NonFiniteState { tensor: name.clone(), step });
        }
        let state = CheckpointState {
            step,
            total_steps: this.total_steps,
            config: this.config.fingerprint()?,
            data: this.data_fingerprint.clone(),
            totals: self.totals,
            updates,
            schedule: self.modes.state(),
            ..CheckpointState::default()
        };
        let path = this.checkpoints.save(&state, &tensors, &best)?;
        tracing::debug!(path = %path.display(), "checkpoint written");
        Ok(())
    }

    /// Runs the validation set in full view through `InferenceStep`, and appends the means to
    /// `validation.jsonl`. Says whether it came to its end: a run that is told to stop gives it up, and makes it up when it
    /// is resumed.
    pub(super) fn validate(&mut self, step: u64) -> Result<bool, TrainError> {
        let model = AutodiffModule::valid(&self.model);
        let mut sum = ValidOutput::default();
        let mut batches = self.valid.iter();
        while !self.stopping()
            && let Some(input) = batches.next()
        {
            let output = InferenceStep::step(&model, input);
            self.strategy.errors.check()?;
            sum.add(&output);
            let progress = batches.progress();
            let item =
                TrainingItem::new(output, progress.clone(), progress, Some(step as usize), None);
            self.processor.process_valid(LearnerEvent::ProcessedItem(item));
        }
        self.strategy.errors.check()?;
        self.processor.process_valid(LearnerEvent::EndEpoch(step as usize));
        if self.stopping() {
            return Ok(false);
        }
        if sum.tokens > 0 {
            let (ce, accuracy, tokens) = (sum.mean_ce(), sum.accuracy(), sum.tokens);
            self.logs()?.validations.write(ValidationRecord { step, ce, accuracy, tokens })?;
        }
        Ok(true)
    }
}
