//! The training loop, as a strategy of Burn's `SupervisedTraining`.
//!
//! Burn's own strategies step the learning rate per micro-batch, sum accumulated gradients and drop
//! the last partial window. Here a step is a window: one mode, one learning rate, one update by the
//! mean gradient over all supervised tokens of the window, one read-back of a few scalars, one
//! record. A GPU is given a step before the numbers of the one before have come back, so it does not
//! wait for the host in between.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use burn::data::dataloader::{DataLoaderIterator, Progress};
use burn::module::AutodiffModule;
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Tensor};
use burn_train::{
    EventProcessorTraining, InferenceStep, Interrupter, Learner, LearnerEvent,
    LearningComponentsMarker, SupervisedLearningStrategy, SupervisedTrainingEventProcessor,
    TrainLoader, TrainStep, TrainingComponents, TrainingItem, ValidLoader,
};
use dualspeed_model::ParamInfo;
use dualspeed_model::objective::{CORRECT, CROSS_ENTROPY, DISTILLATION};
use dualspeed_ops::{AutodiffBackend, ReadLater};

use crate::checkpoint::{CheckpointState, Checkpoints, HostTensor};
use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::error_slot::ErrorSlot;
use crate::lr_schedule::WarmupSchedule;
use crate::metrics::RunMetrics;
use crate::metrics::{JsonlLog, StepRecord, StepTime, TimeSplit, Totals};
use crate::mode::{LaggedSchedule, Mode, PastStep};
use crate::optim::{GradNorm, GroupRates, GroupedAdamW};
use crate::state::export_trainables;
use crate::step::{DualSpeedModel, MicroOutput, TrainInput, ValidOutput};

/// The types of a DualSpeed training in Burn's terms.
pub type Components<B> =
    LearningComponentsMarker<B, WarmupSchedule, DualSpeedModel<B>, GroupedAdamW<B>>;

/// How far a run came.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reached {
    pub(crate) step: u64,
    pub(crate) totals: Totals,
    pub(crate) interrupted: bool,
}

/// DualSpeed's training loop for `TrainingStrategy::Custom`.
pub struct DualSpeedStrategy<B: AutodiffBackend> {
    pub(crate) config: TrainConfig,
    pub(crate) data_fingerprint: String,
    pub(crate) optim: GroupedAdamW<B>,
    /// The parameters that take gradients.
    pub(crate) params: Vec<ParamInfo>,
    pub(crate) rates: GroupRates,
    pub(crate) lr_schedule: WarmupSchedule,
    pub(crate) modes: Mutex<LaggedSchedule>,
    pub(crate) metrics: RunMetrics,
    pub(crate) checkpoints: Checkpoints,
    pub(crate) run_dir: PathBuf,
    pub(crate) device: B::Device,
    pub(crate) save: bool,
    pub(crate) start: Reached,
    pub(crate) total_steps: u64,
    pub(crate) interrupt: Arc<AtomicBool>,
    pub(crate) errors: ErrorSlot,
    pub(crate) reached: Mutex<Reached>,
}

impl<B: AutodiffBackend> SupervisedLearningStrategy<Components<B>> for DualSpeedStrategy<B> {
    fn fit(
        &self,
        components: TrainingComponents<Components<B>>,
        learner: Learner<Components<B>>,
        train: TrainLoader<Components<B>>,
        valid: ValidLoader<Components<B>>,
        _starting_epoch: usize,
    ) -> (DualSpeedModel<B>, SupervisedTrainingEventProcessor<Components<B>>) {
        let mut processor = components.event_processor;
        // The loop takes the model out of the Learner, whose own optimiser step has no room for the count to divide by.
        let model = learner.model();
        drop(learner);
        let mut run = Run {
            strategy: self,
            model,
            modes: &mut self.modes.lock().unwrap_or_else(PoisonError::into_inner),
            valid: &valid,
            processor: &mut processor,
            interrupter: &components.interrupter,
            totals: self.start.totals,
            clock: Instant::now(),
        };
        let mut batches = train.iter();
        let steps = catch_unwind(AssertUnwindSafe(|| run.steps(&mut *batches)));
        let steps = steps.unwrap_or_else(|panic| Err(TrainError::from_panic(&*panic)));
        if let Err(error) = steps {
            self.errors.set(error);
        }
        let model = run.model;
        (model, processor)
    }
}

/// One call of `fit`.
struct Run<'a, B: AutodiffBackend> {
    strategy: &'a DualSpeedStrategy<B>,
    model: DualSpeedModel<B>,
    modes: &'a mut LaggedSchedule,
    valid: &'a ValidLoader<Components<B>>,
    processor: &'a mut SupervisedTrainingEventProcessor<Components<B>>,
    interrupter: &'a Interrupter,
    totals: Totals,
    /// When the last step was over, or the first of several was begun.
    clock: Instant,
}

/// A step whose work the device has not reported done.
struct Launched<B: AutodiffBackend> {
    step: u64,
    mode: Mode,
    lr: f64,
    window: MicroOutput<B>,
    /// Sums of the losses, and the gradient norm where it is on the device.
    numbers: Option<ReadLater>,
    /// The gradient norm where it is on the host.
    grad_norm: Option<f64>,
    time: TimeSplit,
}

type Batches<'a, B> = dyn DataLoaderIterator<TrainInput<B>> + 'a;

impl<B: AutodiffBackend> Run<'_, B> {
    fn steps(&mut self, batches: &mut Batches<'_, B>) -> Result<(), TrainError> {
        let this = self.strategy;
        let mut log = JsonlLog::open(&this.run_dir.join("metrics.jsonl"), this.start.step)?;
        let mut saved = this.start.step;
        // A device that works by itself gets the next step before this one is read back.
        let ahead = !B::computes_on_host();
        let mut open: Option<Launched<B>> = None;
        for step in this.start.step..this.total_steps {
            if open.is_none() {
                self.clock = Instant::now();
            }
            let launched = self.launch(step, batches);
            // Also where this step failed: the record of the one before is complete.
            if let Some(before) = open.take() {
                self.finish(before, &mut log)?;
            }
            open = Some(launched?);
            let done = step + 1;
            let interrupted =
                this.interrupt.load(Ordering::Relaxed) || self.interrupter.should_stop();
            let due = |every: u64| every > 0 && (done % every == 0 || done == this.total_steps);
            let save = interrupted || done == this.total_steps || due(this.config.checkpoint.every);
            let validate = due(this.config.validation.every);
            if (save || validate || !ahead)
                && let Some(last) = open.take()
            {
                self.finish(last, &mut log)?;
            }
            if this.save && save {
                self.save(done)?;
                saved = done;
            }
            self.reach(done, interrupted && done < this.total_steps);
            if validate {
                self.validate(done)?;
            }
            if interrupted {
                break;
            }
        }
        tracing::debug!(saved, "training loop left");
        Ok(())
    }

    /// Queues one optimiser step: all micro-batches of the window, one update.
    fn launch(
        &mut self,
        step: u64,
        batches: &mut Batches<'_, B>,
    ) -> Result<Launched<B>, TrainError> {
        let mut time = TimeSplit::default();
        let mut window: Option<MicroOutput<B>> = None;
        let mut accumulator = GradientsAccumulator::<DualSpeedModel<B>>::new();
        let mode = self.modes.mode(step, self.strategy.total_steps);
        let (grads, window) = loop {
            let waiting = Instant::now();
            let next = batches.next();
            time.data += waiting.elapsed().as_secs_f64();
            let Some(mut input) = next else {
                self.strategy.errors.check()?;
                return Err(TrainError::Thread { what: "data loading" });
            };
            input.mode = mode;
            let last = input.last;
            let output = TrainStep::step(&self.model, input);
            self.strategy.errors.check()?;
            time.add(&output.item.time);
            let first = window.is_none();
            window = Some(match window.take() {
                Some(window) => window.merge(output.item),
                None => output.item,
            });
            if last && first {
                // No accumulation: the gradients are the window's.
                break (output.grads, window);
            }
            let clock = Instant::now();
            accumulator.accumulate(&self.model, output.grads);
            time.optimiser += clock.elapsed().as_secs_f64();
            if last {
                break (accumulator.grads(), window);
            }
        };
        let Some(window) = window else {
            return Err(TrainError::Thread { what: "data loading" });
        };
        let clock = Instant::now();
        let lr = self.strategy.lr_schedule.at(step);
        let grad_norm = self.update(lr, grads, window.counts.supervised_tokens);
        let sums = window.parts.values().map(|part| part.sum.clone()).collect();
        let (numbers, grad_norm) = read_back(sums, grad_norm);
        time.optimiser += clock.elapsed().as_secs_f64();
        Ok(Launched { step, mode, lr, window, numbers, grad_norm, time })
    }

    /// Waits for a step, and writes its record.
    fn finish(&mut self, launched: Launched<B>, log: &mut JsonlLog) -> Result<(), TrainError> {
        let Launched { step, mode, lr, window, numbers, grad_norm, mut time } = launched;
        let waiting = Instant::now();
        let (sums, grad_norm) = wait(numbers, window.parts.len(), grad_norm)?;
        // What the device still had to do: nearly all of it is the language model's.
        time.llm += waiting.elapsed().as_secs_f64();
        let now = Instant::now();
        let seconds = now.duration_since(std::mem::replace(&mut self.clock, now)).as_secs_f64();
        let record = self.record((step, mode, lr), &window, &sums, grad_norm, time, seconds);
        self.modes.finished(PastStep { step, mode, loss: record.loss });
        if !record.loss.is_finite() {
            return Err(TrainError::NonFiniteLoss {
                step,
                value: record.loss,
                samples: window.samples,
            });
        }
        log.write(&record)?;
        self.announce(&record);
        Ok(())
    }

    /// Applies the gradient divided by `tokens`, the supervised tokens of the whole step. A window without any changes
    /// nothing.
    fn update(
        &mut self,
        lr: f64,
        grads: GradientsParams,
        tokens: usize,
    ) -> Option<GradNorm<B::InnerBackend>> {
        if tokens == 0 {
            return None;
        }
        let (model, norm) = self.strategy.optim.update(lr, self.model.clone(), grads, tokens);
        self.model = model;
        Some(norm)
    }

    /// The record of a step; `sums` are those of the window's parts, in their order.
    fn record(
        &mut self,
        (step, mode, lr): (u64, Mode, f64),
        window: &MicroOutput<B>,
        sums: &[f64],
        grad_norm: f64,
        split: TimeSplit,
        seconds: f64,
    ) -> StepRecord {
        let (counts, strategy) = (&window.counts, self.strategy);
        let tokens = counts.supervised_tokens.max(1) as f64;
        let parts = || window.parts.iter().zip(sums);
        let mean = |name: &str| {
            parts()
                .find(|((part, _), _)| part.as_str() == name)
                .map_or(0.0, |((_, part), sum)| sum / part.tokens.max(1) as f64)
        };
        let known = [CROSS_ENTROPY, DISTILLATION, CORRECT];
        let others = parts().filter(|((name, _), _)| !known.contains(&name.as_str()));
        let mut record = StepRecord {
            step,
            mode,
            lr,
            group_lr: strategy.rates.in_use(&strategy.params, lr),
            // One count for every part, divided last.
            loss: parts().map(|((_, part), sum)| part.weight * sum).sum::<f64>() / tokens,
            ce: mean(CROSS_ENTROPY),
            kl: mean(DISTILLATION),
            kl_tokens: window.parts.get(DISTILLATION).map_or(0, |part| part.tokens),
            accuracy: mean(CORRECT),
            parts: others.map(|((name, _), _)| (name.clone(), mean(name))).collect(),
            supervised_tokens: counts.supervised_tokens,
            samples: counts.samples,
            skipped_samples: window.skipped.clone(),
            tokens: counts.tokens,
            tokens_unpruned: counts.tokens_unpruned,
            visual_tokens: counts.visual_tokens,
            visual_tokens_kept: counts.visual_tokens_kept,
            grad_norm,
            ..StepRecord::default()
        };
        self.totals.count(&record);
        self.totals.train_seconds += seconds;
        self.totals.time.add(&split);
        record.slow_share = self.totals.slow_share();
        let done = self.totals.steps.max(1) as f64;
        let left = self.strategy.total_steps.saturating_sub(step + 1) as f64;
        record.time = StepTime {
            step_seconds: seconds,
            split,
            train_seconds: self.totals.train_seconds,
            samples_per_second: counts.samples as f64 / seconds,
            tokens_per_second: counts.tokens as f64 / seconds,
            effective_tokens_per_second: counts.tokens_unpruned as f64 / seconds,
            eta_seconds: left * self.totals.train_seconds / done,
            device_memory_gib: B::memory(&self.strategy.device)
                .map(|memory| memory.taken as f64 / (1u64 << 30) as f64),
        };
        record.metrics = self.strategy.metrics.values(&record);
        record
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

    fn save(&self, step: u64) -> Result<(), TrainError> {
        let mut tensors: BTreeMap<String, HostTensor> = export_trainables(&self.model.llava);
        let mut updates = BTreeMap::new();
        let state = self.strategy.optim.state();
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
        let this = self.strategy;
        let state = CheckpointState {
            step,
            config: this.config.fingerprint()?,
            data: this.data_fingerprint.clone(),
            totals: self.totals,
            updates,
            schedule: self.modes.state(),
            ..CheckpointState::default()
        };
        let path = this.checkpoints.save(&state, &tensors)?;
        tracing::debug!(path = %path.display(), "checkpoint written");
        Ok(())
    }

    /// Runs the validation set in full view through `InferenceStep`, and appends the means to
    /// `validation.jsonl`.
    fn validate(&mut self, step: u64) -> Result<(), TrainError> {
        let model = AutodiffModule::valid(&self.model);
        let mut sum = ValidOutput::default();
        let mut batches = self.valid.iter();
        while let Some(input) = batches.next() {
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
        if sum.tokens == 0 {
            return Ok(());
        }
        let line = serde_json::json!({
            "step": step, "ce": sum.mean_ce(), "accuracy": sum.accuracy(), "tokens": sum.tokens,
        });
        append_line(&self.strategy.run_dir.join("validation.jsonl"), &line.to_string())
    }
}

fn append_line(path: &std::path::Path, line: &str) -> Result<(), TrainError> {
    use std::io::Write;
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let mut file = file.map_err(TrainError::io("open", path))?;
    writeln!(file, "{line}").map_err(TrainError::io("write", path))
}

/// Asks for the numbers of a step: sums of the loss's parts, and the gradient norm where it is on the device.
fn read_back<B: dualspeed_ops::Backend>(
    sums: Vec<Tensor<B, 1>>,
    norm: Option<GradNorm<B>>,
) -> (Option<ReadLater>, Option<f64>) {
    let (mut numbers, mut host) = (sums, None);
    match norm {
        Some(GradNorm::Device(norm)) => numbers.push(norm),
        Some(GradNorm::Host(norm)) => host = Some(norm),
        None => host = Some(0.0),
    }
    if numbers.is_empty() {
        return (None, host);
    }
    let numbers = numbers.into_iter().map(|number| number.cast(DType::F32)).collect();
    let packed = Tensor::cat(numbers, 0);
    (Some(B::read_later(packed.into_primitive().tensor())), host)
}

/// Waits for what [`read_back`] asked for: the sums of `parts` parts, and the gradient norm.
fn wait(
    numbers: Option<ReadLater>,
    parts: usize,
    norm: Option<f64>,
) -> Result<(Vec<f64>, f64), TrainError> {
    let what = "the losses of a step";
    let Some(numbers) = numbers else { return Ok((Vec::new(), norm.unwrap_or(0.0))) };
    let values = numbers().map_err(|message| TrainError::Device { what, message })?;
    let mut values: Vec<f64> = values.into_iter().map(f64::from).collect();
    let norm = norm.or_else(|| if values.len() > parts { values.pop() } else { None });
    match norm {
        Some(norm) if values.len() == parts => Ok((values, norm)),
        _ => {
            let message = format!("expected {parts} sums and a norm, got {} numbers", values.len());
            Err(TrainError::Device { what, message })
        }
    }
}
