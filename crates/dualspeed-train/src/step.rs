//! The model as Burn's Learner sees it: one micro-batch in, gradients and sums out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn_train::metric::{Adaptor, ItemLazy};
use burn_train::{InferenceStep, TrainOutput, TrainStep};
use dualspeed_data::HostBatch;
use dualspeed_model::objective::{CORRECT, CROSS_ENTROPY};
use dualspeed_model::{
    Compat, Forward, Llava, Losses, Needs, Objective, ObjectiveInputs, Pruner, Recompute,
    StepContext, View,
};
use dualspeed_ops::{AutodiffBackend, Backend, to_f32};

use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::error_slot::ErrorSlot;
use crate::features::FeatureCache;
use crate::inputs::inputs;
use crate::metrics::{StepRecord, TimeSplit};
use crate::mode::Mode;

/// LLaVA in a type of this crate, so that Burn's training traits can be implemented for it.
#[derive(Module, Debug)]
pub struct DualSpeedModel<B: Backend> {
    /// The model.
    pub llava: Llava<B>,
}

/// What every training step needs besides the batch. It travels with the batch: a module can hold
/// no trait objects.
pub struct TrainRuntime<B: Backend> {
    pub(crate) config: TrainConfig,
    pub(crate) pruner: Box<dyn Pruner<B>>,
    pub(crate) objective: Box<dyn Objective<B>>,
    pub(crate) features: Option<Arc<FeatureCache>>,
    pub(crate) recompute: Option<Recompute>,
    pub(crate) device: B::Device,
    pub(crate) errors: ErrorSlot,
}

/// What every validation step needs besides the batch.
pub struct ValidRuntime<B: Backend> {
    pub(crate) objective: Box<dyn Objective<B>>,
    pub(crate) features: Option<Arc<FeatureCache>>,
    pub(crate) device: B::Device,
    pub(crate) errors: ErrorSlot,
}

/// One micro-batch.
pub struct TrainInput<B: Backend> {
    /// The samples.
    pub batch: HostBatch,
    /// The optimiser step it belongs to.
    pub step: u64,
    /// The mode of that step; the strategy sets it when the step begins.
    pub mode: Mode,
    /// Whether it is the last micro-batch of that step.
    pub last: bool,
    /// Ids of samples of that step that were left out; with its first micro-batch.
    pub skipped: Vec<String>,
    pub(crate) runtime: Arc<TrainRuntime<B>>,
}

/// One validation batch.
pub struct ValidInput<B: Backend> {
    /// The samples.
    pub batch: HostBatch,
    pub(crate) runtime: Arc<ValidRuntime<B>>,
}

/// Host-side counts of a micro-batch or a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Counts {
    /// Samples.
    pub samples: usize,
    /// Supervised tokens: what the step's loss is divided by.
    pub supervised_tokens: usize,
    /// Tokens the language model saw, padding left out.
    pub tokens: usize,
    /// Tokens of the same samples without pruning or isolator.
    pub tokens_unpruned: usize,
    /// Visual tokens the images have.
    pub visual_tokens: usize,
    /// Visual tokens the language model saw.
    pub visual_tokens_kept: usize,
}

impl Counts {
    fn add(&mut self, other: &Self) {
        self.samples += other.samples;
        self.supervised_tokens += other.supervised_tokens;
        self.tokens += other.tokens;
        self.tokens_unpruned += other.tokens_unpruned;
        self.visual_tokens += other.visual_tokens;
        self.visual_tokens_kept += other.visual_tokens_kept;
    }
}

/// A named term of a step's loss, summed so far; the sum stays on the device until the step is over.
#[derive(Clone, Debug)]
pub struct PartSum<B: Backend> {
    /// The sum over its tokens, `[1]`, f32.
    pub sum: Tensor<B, 1>,
    /// Its tokens.
    pub tokens: usize,
    /// The factor with which it enters the loss.
    pub weight: f64,
}

/// What a micro-batch reports.
pub struct MicroOutput<B: AutodiffBackend> {
    /// The terms of the objective by name.
    pub parts: BTreeMap<String, PartSum<B::InnerBackend>>,
    /// Counts.
    pub counts: Counts,
    /// Seconds.
    pub time: TimeSplit,
    /// Ids of the samples.
    pub samples: Vec<String>,
    /// Ids of samples that were left out.
    pub skipped: Vec<String>,
    /// The finished record, when this announces a whole step to Burn's metrics.
    pub record: Option<StepRecord>,
}

impl<B: AutodiffBackend> MicroOutput<B> {
    fn empty() -> Self {
        let (counts, time) = (Counts::default(), TimeSplit::default());
        let (samples, skipped) = (Vec::new(), Vec::new());
        Self { parts: BTreeMap::new(), counts, time, samples, skipped, record: None }
    }

    /// A micro-batch of which nothing came, or that was not tried.
    pub(crate) fn of_samples(samples: Vec<String>) -> Self {
        let counts = Counts { samples: samples.len(), ..Counts::default() };
        Self { counts, samples, ..Self::empty() }
    }

    /// Carries a record to Burn's metrics.
    pub(crate) fn announcing(record: StepRecord) -> Self {
        Self { record: Some(record), ..Self::empty() }
    }

    /// Adds another micro-batch of the same window.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        for (name, part) in other.parts {
            let sum = match self.parts.remove(&name) {
                Some(own) => PartSum {
                    sum: own.sum + part.sum,
                    tokens: own.tokens + part.tokens,
                    weight: part.weight,
                },
                None => part,
            };
            self.parts.insert(name, sum);
        }
        self.counts.add(&other.counts);
        self.time.add(&other.time);
        self.samples.extend(other.samples);
        self.skipped.extend(other.skipped);
        self
    }
}

impl<B: AutodiffBackend> ItemLazy for MicroOutput<B> {
    type ItemSync = StepRecord;

    fn sync(self) -> StepRecord {
        self.record.unwrap_or_default()
    }
}

impl Adaptor<StepRecord> for StepRecord {
    fn adapt(&self) -> StepRecord {
        self.clone()
    }
}

/// Sums over a validation batch, or the whole set.
#[derive(Clone, Copy, Debug, Default)]
pub struct ValidOutput {
    /// Sum of the cross entropy.
    pub ce: f64,
    /// Right predictions.
    pub correct: f64,
    /// Supervised tokens.
    pub tokens: usize,
}

impl ValidOutput {
    pub(crate) fn add(&mut self, other: &Self) {
        self.ce += other.ce;
        self.correct += other.correct;
        self.tokens += other.tokens;
    }

    /// Cross entropy per supervised token; 0 without any.
    pub fn mean_ce(&self) -> f64 {
        self.ce / self.tokens.max(1) as f64
    }

    /// Share of right predictions; 0 without any token.
    pub fn accuracy(&self) -> f64 {
        self.correct / self.tokens.max(1) as f64
    }
}

impl ItemLazy for ValidOutput {
    type ItemSync = ValidOutput;

    fn sync(self) -> ValidOutput {
        self
    }
}

impl<B: AutodiffBackend> TrainStep for DualSpeedModel<B> {
    type Input = TrainInput<B>;
    type Output = MicroOutput<B>;

    /// Forward and backward of one micro-batch. Gradients are of the *sum* over its supervised
    /// tokens, so that those of a window add up; the optimiser divides by the window's count. An
    /// error goes to the slot.
    fn step(&self, input: TrainInput<B>) -> TrainOutput<MicroOutput<B>> {
        match self.try_step(&input) {
            Ok((grads, item)) => TrainOutput { grads, item },
            Err(error) => {
                input.runtime.errors.set(error);
                TrainOutput { grads: GradientsParams::new(), item: MicroOutput::empty() }
            }
        }
    }
}

impl<B: AutodiffBackend> DualSpeedModel<B> {
    fn try_step(
        &self,
        input: &TrainInput<B>,
    ) -> Result<(GradientsParams, MicroOutput<B>), TrainError> {
        let TrainInput { batch, step, mode, runtime, .. } = input;
        if batch.sample_ids.is_empty() {
            // Every sample of the step was left out: it changes nothing.
            let skipped = input.skipped.clone();
            return Ok((GradientsParams::new(), MicroOutput { skipped, ..MicroOutput::empty() }));
        }
        let (config, model) = (&runtime.config, &self.llava);
        let (pruner, objective) = (&*runtime.pruner, &*runtime.objective);
        let ctx = StepContext {
            recompute: runtime.recompute,
            // Free on the host; on a GPU it synchronises, so only while a run is young.
            verify_picks: *step < 3 || B::computes_on_host(),
            ..StepContext::training(config.seed, *step)
        };
        let mut time = TimeSplit::default();
        let mut clock = Instant::now();

        let has_images = !batch.images.is_empty();
        let distils = *mode == Mode::Slow && has_images && objective.needs_teacher();
        let prunes = has_images && (*mode == Mode::Fast || distils);
        let needs = if prunes { pruner.needs() } else { Needs::none() };
        let features = runtime.features.as_deref();
        let inputs = inputs(model, features, batch, &needs, &runtime.device)?;
        time.vision = lap(&mut clock);

        let n = model.config.num_visual_tokens();
        let fast = if has_images { config.fast_view(n) } else { View::Full };
        let (student, teacher) = match mode {
            Mode::Fast => {
                let selection = model.select(&inputs, &fast, Some(pruner), &ctx)?;
                time.prune = lap(&mut clock);
                (model.run(&inputs, selection.as_ref(), &fast, &ctx, None)?, None)
            }
            Mode::Slow => {
                let student = model.forward(&inputs, &View::Full, None, &ctx)?;
                let dropout = config.compat == Compat::Official;
                let ctx = StepContext { dropout, ..ctx };
                let teacher = || model.forward_teacher(&inputs, &fast, pruner, &ctx);
                (student, distils.then(teacher).transpose()?)
            }
        };
        let lm_head = model.lm_head_weight();
        let losses = ObjectiveInputs { student: &student, teacher: teacher.as_ref(), lm_head };
        let losses = objective.losses(&losses)?;
        let grads = GradientsParams::from_grads(losses.weighted_sum()?.backward(), self);
        time.llm = lap(&mut clock);
        let counts = counts(batch, &student, &losses, n);
        let parts = losses.parts.into_iter().map(|part| {
            let (sum, tokens, weight) = (part.sum.inner(), part.tokens, part.weight);
            (part.name, PartSum { sum, tokens, weight })
        });
        let (parts, samples) = (parts.collect(), batch.sample_ids.clone());
        let skipped = input.skipped.clone();
        Ok((grads, MicroOutput { parts, counts, time, samples, skipped, record: None }))
    }
}

/// Counts of a micro-batch whose images (or tiles) have `n` visual tokens each.
fn counts<B: Backend>(
    batch: &HostBatch,
    student: &Forward<B>,
    losses: &Losses<B>,
    n: usize,
) -> Counts {
    let visual_tokens = batch.visual_tokens(n);
    let text = batch.input_ids.iter().map(Vec::len).sum::<usize>();
    Counts {
        samples: batch.sample_ids.len(),
        supervised_tokens: losses.tokens,
        tokens: student.tokens(),
        tokens_unpruned: text.saturating_sub(batch.image_count()) + visual_tokens,
        visual_tokens,
        visual_tokens_kept: student.visual_tokens,
    }
}

impl<B: Backend> InferenceStep for DualSpeedModel<B> {
    type Input = ValidInput<B>;
    type Output = ValidOutput;

    /// Cross entropy and token accuracy in full view. An error goes to the slot.
    fn step(&self, input: ValidInput<B>) -> ValidOutput {
        self.try_validate(&input).unwrap_or_else(|error| {
            input.runtime.errors.set(error);
            ValidOutput::default()
        })
    }
}

impl<B: Backend> DualSpeedModel<B> {
    fn try_validate(&self, input: &ValidInput<B>) -> Result<ValidOutput, TrainError> {
        let ValidInput { batch, runtime } = input;
        let (model, none) = (&self.llava, Needs::none());
        let inputs = inputs(model, runtime.features.as_deref(), batch, &none, &runtime.device)?;
        let student = model.forward(&inputs, &View::Full, None, &StepContext::inference(0))?;
        let lm_head = model.lm_head_weight();
        let losses = ObjectiveInputs { student: &student, teacher: None, lm_head };
        let losses = runtime.objective.losses(&losses)?;
        let sum = |name| losses.part(name).map_or(0.0, |part| host_sum(part.sum.clone()));
        Ok(ValidOutput { ce: sum(CROSS_ENTROPY), correct: sum(CORRECT), tokens: losses.tokens })
    }
}

fn host_sum<B: Backend>(sum: Tensor<B, 1>) -> f64 {
    to_f32(sum).first().copied().map_or(0.0, f64::from)
}

/// Seconds since the last lap.
fn lap(clock: &mut Instant) -> f64 {
    let seconds = clock.elapsed().as_secs_f64();
    *clock = Instant::now();
    seconds
}
