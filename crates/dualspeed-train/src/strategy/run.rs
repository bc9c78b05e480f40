//! The loop over optimiser steps.

use std::cell::Cell;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::Instant;

use burn::data::dataloader::{DataLoaderIterator, Progress};
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn_train::{
    EventProcessorTraining, Interrupter, LearnerEvent, SupervisedTrainingEventProcessor, TrainStep,
    TrainingItem, ValidLoader,
};
use dualspeed_ops::AutodiffBackend;

use super::record::{Awaited, Launched, packed, record};
use super::{Components, DualSpeedStrategy, Reached};
use crate::error::TrainError;
use crate::metrics::{JsonlLog, StepRecord, TimeSplit, Totals, ValidationLog};
use crate::mode::{LaggedSchedule, Mode, PastStep};
use crate::run_files::{METRICS_FILE, VALIDATION_FILE};
use crate::step::{DualSpeedModel, MicroOutput, TrainInput};

/// One call of `fit`.
pub(super) struct Run<'a, B: AutodiffBackend> {
    pub(super) strategy: &'a DualSpeedStrategy<B>,
    pub(super) model: DualSpeedModel<B>,
    pub(super) modes: &'a mut LaggedSchedule,
    pub(super) valid: &'a ValidLoader<Components<B>>,
    pub(super) processor: &'a mut SupervisedTrainingEventProcessor<Components<B>>,
    interrupter: &'a Interrupter,
    pub(super) totals: Totals,
    /// Opened when the first step is over: until then nothing in the run directory is touched.
    pub(super) logs: Option<Logs>,
    /// The step whose numbers are not back.
    pub(super) open: Option<Launched<B>>,
    /// Steps that are in the model, that have a record, and that the newest checkpoint has.
    pub(super) launched: u64,
    pub(super) recorded: u64,
    pub(super) saved: u64,
    /// Set while an update is made: what it leaves when it ends in a panic is no state.
    pub(super) updating: Cell<bool>,
    /// When the last step was over, or the first of several was begun.
    clock: Instant,
}

/// What is appended to.
pub(super) struct Logs {
    pub(super) steps: JsonlLog,
    pub(super) validations: ValidationLog,
}

type Batches<'a, B> = dyn DataLoaderIterator<TrainInput<B>> + 'a;

/// All micro-batches of a step.
enum Window<B: AutodiffBackend> {
    /// With the sum of their gradients.
    Whole(GradientsParams, MicroOutput<B>),
    /// One of them made numbers that are not finite; why.
    Refused(String, MicroOutput<B>),
    /// The run was told to stop before the last of them.
    Stopped,
}

impl<'a, B: AutodiffBackend> Run<'a, B> {
    pub(super) fn new(
        strategy: &'a DualSpeedStrategy<B>,
        model: DualSpeedModel<B>,
        modes: &'a mut LaggedSchedule,
        valid: &'a ValidLoader<Components<B>>,
        processor: &'a mut SupervisedTrainingEventProcessor<Components<B>>,
        interrupter: &'a Interrupter,
    ) -> Self {
        let start = strategy.start.step;
        Self {
            strategy,
            model,
            modes,
            valid,
            processor,
            interrupter,
            totals: strategy.start.totals,
            logs: None,
            open: None,
            launched: start,
            recorded: start,
            saved: start,
            updating: Cell::new(false),
            clock: Instant::now(),
        }
    }

    pub(super) fn into_model(self) -> DualSpeedModel<B> {
        self.model
    }

    /// Whether the run was told to end.
    pub(super) fn stopping(&self) -> bool {
        self.strategy.interrupt.load(Ordering::Relaxed) || self.interrupter.should_stop()
    }

    pub(super) fn steps(&mut self, batches: &mut Batches<'_, B>) -> Result<(), TrainError> {
        let this = self.strategy;
        let due = |done: u64, every: u64| {
            every > 0 && (done.is_multiple_of(every) || done == this.total_steps)
        };
        // A device that works by itself gets the next step before this one is read back.
        let ahead = !B::computes_on_host();
        let begin = this.start.step;
        // A validation that the run was stopped in is made up.
        let every = this.config.validation.every;
        if begin > 0 && due(begin, every) && !self.logs()?.validations.has(begin) {
            let validated = self.validate(begin)?;
            self.reach(begin, !validated);
            if !validated {
                return Ok(());
            }
        }
        for step in begin..this.total_steps {
            if self.open.is_none() {
                self.clock = Instant::now();
            }
            let launched = self.launch(step, batches);
            let before = self.open.take();
            let launched = launched.map(|launched| self.open = launched);
            // Also where this step failed: the record of the one before is complete.
            if let Some(before) = before {
                self.finish(before)?;
            }
            launched?;
            if self.launched == step {
                // Told to stop before the step was whole.
                if this.save && self.recorded > self.saved {
                    self.save(self.recorded)?;
                }
                self.reach(self.recorded, true);
                return Ok(());
            }
            if !ahead && let Some(open) = self.open.take() {
                self.finish(open)?;
            }
            let done = step + 1;
            let interrupted = self.stopping();
            let last = done == this.total_steps;
            let save = interrupted || last || due(done, this.config.checkpoint.every);
            let validate = due(done, every);
            if (save || validate)
                && let Some(open) = self.open.take()
            {
                self.finish(open)?;
            }
            if this.save && save {
                self.save(done)?;
                self.saved = done;
            }
            self.reach(done, interrupted && !last);
            if validate && !interrupted && !self.validate(done)? {
                if this.save && self.saved < done {
                    self.save(done)?;
                    self.saved = done;
                }
                // Also after the last step: resumed, the run makes it up.
                self.reach(done, true);
                break;
            }
            if interrupted {
                self.reach(done, !last || validate);
                break;
            }
        }
        tracing::debug!(saved = self.saved, "training loop left");
        Ok(())
    }

    /// Queues one optimiser step: all micro-batches of the window, one update. `None` if the run was told to stop before the
    /// window was whole; nothing of it is in the model then.
    fn launch(
        &mut self,
        step: u64,
        batches: &mut Batches<'_, B>,
    ) -> Result<Option<Launched<B>>, TrainError> {
        let mut time = TimeSplit::default();
        let mode = self.modes.mode(step, self.strategy.total_steps);
        let window = self.window(mode, batches, &mut time)?;
        let clock = Instant::now();
        let lr = self.strategy.lr_schedule.at(step);
        let (window, numbers) = match window {
            Window::Stopped => return Ok(None),
            Window::Refused(reason, window) => (window, Awaited::refused(reason)),
            Window::Whole(grads, window) => {
                let losses = packed(&window);
                let tokens = window.counts.supervised_tokens;
                // A window without any supervised token changes nothing.
                let updated = (tokens > 0).then(|| {
                    self.updating.set(true);
                    let model = self.model.clone();
                    let (model, updated) =
                        self.strategy.optim.update(lr, model, grads, tokens, losses.clone());
                    self.model = model;
                    self.updating.set(false);
                    updated
                });
                (window, Awaited::new(losses, updated))
            }
        };
        self.launched = step + 1;
        time.optimiser += clock.elapsed().as_secs_f64();
        Ok(Some(Launched { step, mode, lr, window, numbers, time }))
    }

    /// Forward and backward of all micro-batches of a step.
    fn window(
        &mut self,
        mode: Mode,
        batches: &mut Batches<'_, B>,
        time: &mut TimeSplit,
    ) -> Result<Window<B>, TrainError> {
        let mut window: Option<MicroOutput<B>> = None;
        let mut refused: Option<String> = None;
        let mut accumulator = GradientsAccumulator::<DualSpeedModel<B>>::new();
        loop {
            if window.is_some() && self.stopping() {
                return Ok(Window::Stopped);
            }
            let waiting = Instant::now();
            let next = batches.next();
            time.data += waiting.elapsed().as_secs_f64();
            let Some(mut input) = next else {
                self.strategy.errors.check()?;
                return match self.stopping() {
                    true => Ok(Window::Stopped),
                    false => Err(TrainError::Thread { what: "data loading" }),
                };
            };
            input.mode = mode;
            let (last, samples) = (input.last, input.batch.sample_ids.clone());
            let skipped = input.skipped.clone();
            let output = match refused {
                Some(_) => None,
                None => {
                    let output = TrainStep::step(&self.model, input);
                    match self.strategy.errors.check() {
                        Ok(()) => Some(output),
                        // Of this step alone: the next one has other samples.
                        Err(error) if error.is_non_finite() => {
                            refused = Some(error.to_string());
                            None
                        }
                        Err(error) => return Err(error),
                    }
                }
            };
            let first = window.is_none();
            let (grads, item) = match output {
                Some(output) => (Some(output.grads), output.item),
                None => (None, MicroOutput { skipped, ..MicroOutput::of_samples(samples) }),
            };
            time.add(&item.time);
            let whole = match window.take() {
                Some(window) => window.merge(item),
                None => item,
            };
            match (last, refused.take(), grads) {
                (true, Some(reason), _) => return Ok(Window::Refused(reason, whole)),
                // No accumulation: the gradients are the window's.
                (true, None, Some(grads)) if first => return Ok(Window::Whole(grads, whole)),
                (_, reason, grads) => {
                    let clock = Instant::now();
                    grads.into_iter().for_each(|grads| accumulator.accumulate(&self.model, grads));
                    time.optimiser += clock.elapsed().as_secs_f64();
                    refused = reason;
                }
            }
            if last {
                return Ok(Window::Whole(accumulator.grads(), whole));
            }
            window = Some(whole);
        }
    }

    /// Waits for a step, and writes its record.
    pub(super) fn finish(&mut self, launched: Launched<B>) -> Result<(), TrainError> {
        let Launched { step, mode, lr, window, numbers, mut time } = launched;
        let waiting = Instant::now();
        let numbers = numbers.wait()?;
        if numbers.undecided {
            self.strategy.optim.settle(numbers.applied);
        }
        // What the device still had to do: nearly all of it is the language model's.
        time.llm += waiting.elapsed().as_secs_f64();
        let now = Instant::now();
        let seconds = now.duration_since(std::mem::replace(&mut self.clock, now)).as_secs_f64();
        let of = (step, mode, lr);
        let record = record(self.strategy, &mut self.totals, of, &window, &numbers, time, seconds);
        if record.skipped.is_none() {
            self.modes.finished(PastStep { step, mode, loss: record.loss });
        }
        self.logs()?.steps.write(&record)?;
        self.recorded = step + 1;
        self.strategy.begun.store(true, Ordering::SeqCst);
        let Some(skipped) = record.skipped else {
            self.announce(&record);
            return Ok(());
        };
        let samples = skipped.samples.join(", ");
        tracing::warn!(
            "step {step} is skipped, model and optimiser stay as they were: {} (samples {samples})",
            skipped.reason
        );
        match self.totals.skipped_in_a_row >= self.strategy.config.optim.max_skipped {
            true => Err(TrainError::TooManySkipped {
                in_a_row: self.totals.skipped_in_a_row,
                step,
                reason: skipped.reason,
                samples: skipped.samples,
            }),
            false => Ok(()),
        }
    }

    /// The logs. The first time, the run directory is made this run's.
    pub(super) fn logs(&mut self) -> Result<&mut Logs, TrainError> {
        let this = self.strategy;
        let logs = match self.logs.take() {
            Some(logs) => logs,
            None => {
                let begin = this.begin.lock().unwrap_or_else(PoisonError::into_inner).take();
                begin.map_or(Ok(()), |begin| begin())?;
                let (dir, start) = (&this.run_dir, this.start.step);
                Logs {
                    steps: JsonlLog::open_steps(&dir.join(METRICS_FILE), start)?,
                    validations: ValidationLog::open(&dir.join(VALIDATION_FILE), start)?,
                }
            }
        };
        Ok(self.logs.insert(logs))
    }

    /// Hands the record to Burn's metrics and renderer.
    fn announce(&mut self, record: &StepRecord) {
        let (done, total) = (record.step as usize + 1, self.strategy.total_steps as usize);
        let item = TrainingItem::new(
            MicroOutput::announcing(record.clone()),
            Progress::new(done, total),
            Progress::new(done, total),
            Some(done),
            Some(record.lr),
        );
        self.processor.process_train(LearnerEvent::ProcessedItem(item));
    }

    fn reach(&self, step: u64, interrupted: bool) {
        let mut reached = self.strategy.reached.lock().unwrap_or_else(PoisonError::into_inner);
        *reached = Reached { step, totals: self.totals, interrupted };
    }
}
