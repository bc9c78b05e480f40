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
use burn::optim::{GradientsAccumulator, GradientsParams};
use burn::tensor::{DType, Tensor};
use burn_train::{
    EventProcessorTraining, InferenceStep, Interrupter, Learner, LearnerEvent,
    LearningComponentsMarker, SupervisedLearningStrategy, SupervisedTrainingEventProcessor,
    TrainLoader, TrainingComponents, TrainingItem, ValidLoader,
};
use dualspeed_ops::{AutodiffBackend, ReadLater};

use crate::checkpoint::{CheckpointState, Checkpoints, HostTensor};
use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::metrics::{JsonlLog, StepRecord, StepTime, TimeSplit, Totals};
use crate::mode::Mode;
use crate::model::{DualSpeedModel, MicroOutput, TrainInput, ValidOutput};
use crate::optim::{GradNorm, GroupedAdamW, computes_on_host, trainable_params};
use crate::schedule::WarmupSchedule;
use crate::state::export_trainables;

/// The types of a DualSpeed training in Burn's terms.
pub type Components<B> =
    LearningComponentsMarker<B, WarmupSchedule, DualSpeedModel<B>, GroupedAdamW<B>>;

/// The first error of a run. `TrainStep::step`, `fit` and the loaders cannot return one, so it is
/// left here.
#[derive(Clone, Debug, Default)]
pub struct ErrorSlot(Arc<Mutex<Option<TrainError>>>);

impl ErrorSlot {
    /// Keeps `error` unless there is an earlier one.
    pub fn set(&self, error: TrainError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// Takes the error out.
    pub fn take(&self) -> Option<TrainError> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn check(&self) -> Result<(), TrainError> {
        self.take().map_or(Ok(()), Err)
    }
}

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
        mut learner: Learner<Components<B>>,
        train: TrainLoader<Components<B>>,
        valid: ValidLoader<Components<B>>,
        _starting_epoch: usize,
    ) -> (DualSpeedModel<B>, SupervisedTrainingEventProcessor<Components<B>>) {
        let mut processor = components.event_processor;
        let mut run = Run {
            strategy: self,
            learner: &mut learner,
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
        (learner.model(), processor)
    }
}

/// One call of `fit`.
struct Run<'a, B: AutodiffBackend> {
    strategy: &'a DualSpeedStrategy<B>,
    learner: &'a mut Learner<Components<B>>,
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
        let ahead = !computes_on_host::<B>(&this.device);
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
        let (grads, mode, window) = loop {
            let waiting = Instant::now();
            let next = batches.next();
            time.data += waiting.elapsed().as_secs_f64();
            let Some(input) = next else {
                self.strategy.errors.check()?;
                return Err(TrainError::Thread { what: "data loading" });
            };
            let (last, mode) = (input.last, input.mode);
            let output = self.learner.train_step(input);
            self.strategy.errors.check()?;
            time.add(&output.item.time);
            let first = window.is_none();
            window = Some(match window.take() {
                Some(window) => window.merge(output.item),
                None => output.item,
            });
            if last && first {
                // No accumulation: the gradients are the window's.
                break (output.grads, mode, window);
            }
            let clock = Instant::now();
            accumulator.accumulate(&self.learner.model(), output.grads);
            time.optimiser += clock.elapsed().as_secs_f64();
            if last {
                break (accumulator.grads(), mode, window);
            }
        };
        let Some(window) = window else {
            return Err(TrainError::Thread { what: "data loading" });
        };
        let clock = Instant::now();
        let grad_norm = self.update(grads, window.counts.supervised_tokens);
        let lr = self.learner.lr_current();
        let (numbers, grad_norm) = read_back(window.sums.clone(), grad_norm);
        time.optimiser += clock.elapsed().as_secs_f64();
        Ok(Launched { step, mode, lr, window, numbers, grad_norm, time })
    }

    /// Waits for a step, and writes its record.
    fn finish(&mut self, launched: Launched<B>, log: &mut JsonlLog) -> Result<(), TrainError> {
        let Launched { step, mode, lr, window, numbers, grad_norm, mut time } = launched;
        let waiting = Instant::now();
        let (sums, grad_norm) = wait(numbers, grad_norm)?;
        // What the device still had to do: nearly all of it is the language model's.
        time.llm += waiting.elapsed().as_secs_f64();
        let now = Instant::now();
        let seconds = now.duration_since(std::mem::replace(&mut self.clock, now)).as_secs_f64();
        let record = self.record((step, mode, lr), &window, sums, grad_norm, time, seconds);
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

    /// Applies the mean gradient over `tokens` supervised tokens. A window without any changes
    /// nothing.
    fn update(
        &mut self,
        grads: GradientsParams,
        tokens: usize,
    ) -> Option<GradNorm<B::InnerBackend>> {
        self.learner.lr_step();
        if tokens == 0 {
            return None;
        }
        self.strategy.optim.state().grad_scale = 1.0 / tokens as f64;
        self.learner.optimizer_step(grads);
        self.strategy.optim.state().grad_norm.take()
    }

    fn record(
        &mut self,
        (step, mode, lr): (u64, Mode, f64),
        window: &MicroOutput<B>,
        [ce, kl, correct]: [f64; 3],
        grad_norm: f64,
        split: TimeSplit,
        seconds: f64,
    ) -> StepRecord {
        let counts = &window.counts;
        let tokens = counts.supervised_tokens.max(1) as f64;
        let lambda = self.strategy.config.distill.lambda;
        let mut record = StepRecord {
            step,
            mode,
            lr,
            loss: (ce + lambda * kl) / tokens,
            ce: ce / tokens,
            kl: kl / counts.kl_tokens.max(1) as f64,
            kl_tokens: counts.kl_tokens,
            accuracy: correct / tokens,
            supervised_tokens: counts.supervised_tokens,
            samples: counts.samples,
            tokens: counts.tokens,
            tokens_unpruned: counts.tokens_unpruned,
            visual_tokens: counts.visual_tokens,
            visual_tokens_kept: counts.visual_tokens_kept,
            grad_norm,
            slow_share: 0.0,
            time: StepTime::default(),
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
        let model = self.learner.model();
        let params = trainable_params(&model.llava);
        let mut tensors: BTreeMap<String, HostTensor> = export_trainables(&model.llava);
        let mut updates = BTreeMap::new();
        let state = self.strategy.optim.state();
        for param in &params {
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
        let config = this.config.fingerprint()?;
        let state =
            CheckpointState::new(step, config, this.data_fingerprint.clone(), self.totals, updates);
        let path = this.checkpoints.save(&state, &tensors)?;
        tracing::debug!(path = %path.display(), "checkpoint written");
        Ok(())
    }

    /// Runs the validation set in full view through `InferenceStep`, and appends the means to
    /// `validation.jsonl`.
    fn validate(&mut self, step: u64) -> Result<(), TrainError> {
        let model = burn::module::AutodiffModule::valid(&self.learner.model());
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

/// Asks for the numbers of a step: sums of the losses, and the gradient norm where it is on the device.
fn read_back<B: dualspeed_ops::Backend>(
    sums: Option<Tensor<B, 1>>,
    norm: Option<GradNorm<B>>,
) -> (Option<ReadLater>, Option<f64>) {
    let Some(sums) = sums else { return (None, Some(0.0)) };
    let sums = sums.cast(DType::F32);
    let (packed, norm) = match norm {
        Some(GradNorm::Device(norm)) => (Tensor::cat(vec![sums, norm.cast(DType::F32)], 0), None),
        Some(GradNorm::Host(norm)) => (sums, Some(norm)),
        None => (sums, Some(0.0)),
    };
    (Some(B::read_later(packed.into_primitive().tensor())), norm)
}

/// Waits for what [`read_back`] asked for.
fn wait(numbers: Option<ReadLater>, norm: Option<f64>) -> Result<([f64; 3], f64), TrainError> {
    let what = "the losses of a step";
    let Some(numbers) = numbers else { return Ok(([0.0; 3], norm.unwrap_or(0.0))) };
    let values = numbers().map_err(|message| TrainError::Device { what, message })?;
    let at = |index: usize| values.get(index).copied().map(f64::from);
    match (at(0), at(1), at(2), norm.or(at(3))) {
        (Some(ce), Some(kl), Some(correct), Some(norm)) => Ok(([ce, kl, correct], norm)),
        _ => {
            let message = format!("expected 3 or 4 numbers, got {}", values.len());
            Err(TrainError::Device { what, message })
        }
    }
}
