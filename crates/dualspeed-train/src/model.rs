//! The model as Burn's Learner sees it: one micro-batch in, gradients and sums out.

use std::sync::Arc;
use std::time::Instant;

use burn::module::Module;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use burn_train::metric::{Adaptor, ItemLazy};
use burn_train::{InferenceStep, TrainOutput, TrainStep};
use dualspeed_data::{HostBatch, IMAGE_TOKEN_INDEX, Tiling};
use dualspeed_model::{
    Llava, Needs, Pruner, Recompute, StepContext, TextBatch, TileLayout, View, VisionInput,
    fast_loss, slow_loss,
};
use dualspeed_ops::{AutodiffBackend, Backend};

use crate::config::{Compat, TrainConfig};
use crate::error::TrainError;
use crate::features::{FeatureCache, pixel_values};
use crate::metrics::{StepRecord, TimeSplit};
use crate::mode::Mode;
use crate::optim::{computes_on_host, to_f32};
use crate::strategy::ErrorSlot;

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
    pub(crate) features: Option<Arc<FeatureCache>>,
    pub(crate) recompute: Option<Recompute>,
    pub(crate) device: B::Device,
    pub(crate) errors: ErrorSlot,
}

/// What every validation step needs besides the batch.
pub struct ValidRuntime<B: Backend> {
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
    /// The mode of that step.
    pub mode: Mode,
    /// Whether it is the last micro-batch of that step.
    pub last: bool,
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
    /// Supervised tokens.
    pub supervised_tokens: usize,
    /// Supervised tokens with a teacher.
    pub kl_tokens: usize,
    /// Tokens the language model saw, padding left out.
    pub tokens: usize,
    /// Tokens of the same samples without pruning or isolator.
    pub tokens_unpruned: usize,
    /// Visual tokens the images have.
    pub visual_tokens: usize,
    /// Visual tokens the language model saw.
    pub visual_tokens_kept: usize,
}

/// What a micro-batch reports; sums stay on the device until the step is over.
pub struct MicroOutput<B: AutodiffBackend> {
    /// Sums of cross entropy, KL, and right predictions over the supervised tokens, `[3]`.
    pub sums: Option<Tensor<B::InnerBackend, 1>>,
    /// Counts.
    pub counts: Counts,
    /// Seconds.
    pub time: TimeSplit,
    /// Ids of the samples.
    pub samples: Vec<String>,
    /// The finished record, when this announces a whole step to Burn's metrics.
    pub record: Option<StepRecord>,
}

impl<B: AutodiffBackend> MicroOutput<B> {
    fn empty() -> Self {
        let (counts, time) = (Counts::default(), TimeSplit::default());
        Self { sums: None, counts, time, samples: Vec::new(), record: None }
    }

    /// Carries a record to Burn's metrics.
    pub(crate) fn announcing(record: StepRecord) -> Self {
        Self { record: Some(record), ..Self::empty() }
    }

    /// Adds another micro-batch of the same window.
    pub(crate) fn merge(mut self, other: Self) -> Self {
        self.sums = match (self.sums, other.sums) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        let (sum, add) = (&mut self.counts, other.counts);
        sum.samples += add.samples;
        sum.supervised_tokens += add.supervised_tokens;
        sum.kl_tokens += add.kl_tokens;
        sum.tokens += add.tokens;
        sum.tokens_unpruned += add.tokens_unpruned;
        sum.visual_tokens += add.visual_tokens;
        sum.visual_tokens_kept += add.visual_tokens_kept;
        self.time.add(&other.time);
        self.samples.extend(other.samples);
        self
    }
}

impl<B: AutodiffBackend> ItemLazy for MicroOutput<B> {
    type ItemSync = StepRecord;

    fn sync(self) -> StepRecord {
        self.record.unwrap_or_else(StepRecord::empty)
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
        let config = &runtime.config;
        let text = text_batch(batch);
        let has_images = !batch.images.is_empty();
        let mut ctx = StepContext::training(config.seed, *step, batch.sample_ids.clone())
            .with_prompts(batch.prompts.clone());
        ctx.recompute = runtime.recompute;
        ctx.layouts = layouts(batch);
        // Free on the host; on a GPU it synchronises, so only while a run is young.
        ctx.verify_picks = *step < 3 || computes_on_host::<B>(&runtime.device);
        // On the host it saves little, and would move recorded results by their rounding.
        ctx.project_kept = !computes_on_host::<B>(&runtime.device);
        let mut time = TimeSplit::default();
        let mut clock = Instant::now();

        let distilled = *mode == Mode::Slow && config.distill.lambda > 0.0 && has_images;
        let prunes = has_images && (*mode == Mode::Fast || distilled);
        let needs = if prunes { runtime.pruner.needs() } else { Needs::default() };
        let visual = match has_images {
            true => {
                let input =
                    vision_input(runtime.features.as_deref(), batch, needs, &runtime.device)?;
                Some(self.llava.encode(input, needs)?) // [images, n, d]
            }
            false => None,
        };
        let patches = visual.as_ref().map_or(0, |visual| visual.tokens());
        time.vision = lap(&mut clock);

        let fast = match has_images {
            true => config.fast_view(patches),
            false => View::Full,
        };
        let pruned = match prunes {
            true => self.llava.prune(text, visual.as_ref(), &fast, Some(&*runtime.pruner), &ctx)?,
            false => None,
        }; // [images, keep, d]
        time.prune = lap(&mut clock);

        let (student, losses) = match mode {
            Mode::Fast => {
                let student = self.llava.forward_kept(text, pruned.as_ref(), &fast, &ctx)?;
                let losses = fast_loss(&self.llava, &student);
                (student, losses)
            }
            Mode::Slow => {
                let full = self.llava.prune(text, visual.as_ref(), &View::Full, None, &ctx)?;
                let student = self.llava.forward_kept(text, full.as_ref(), &View::Full, &ctx)?;
                let losses = match distilled {
                    true => {
                        let dropout = config.compat == Compat::Official;
                        let ctx = StepContext { dropout, ..ctx };
                        let teacher =
                            self.llava.forward_teacher(text, pruned.as_ref(), &fast, &ctx)?;
                        slow_loss(&self.llava, &student, &teacher, config.distill.tau)?
                    }
                    false => fast_loss(&self.llava, &student),
                };
                (student, losses)
            }
        };
        let total = match &losses.kl {
            Some(kl) => losses.ce.clone() + kl.clone().mul_scalar(config.distill.lambda),
            None => losses.ce.clone(),
        };
        let grads = GradientsParams::from_grads(total.backward(), self);
        let kl = losses.kl.unwrap_or_else(|| losses.ce.zeros_like());
        let sums = Tensor::cat(vec![losses.ce.inner(), kl.inner(), losses.correct.inner()], 0);
        time.llm = lap(&mut clock);

        let visual_tokens = batch.visual_tokens(patches);
        let text_tokens =
            batch.input_ids.iter().map(Vec::len).sum::<usize>().saturating_sub(batch.image_count());
        let counts = Counts {
            samples: batch.sample_ids.len(),
            supervised_tokens: losses.tokens,
            kl_tokens: losses.kl_tokens,
            tokens: student.tokens(),
            tokens_unpruned: text_tokens + visual_tokens,
            visual_tokens,
            visual_tokens_kept: student.visual_tokens,
        };
        let samples = batch.sample_ids.clone();
        Ok((grads, MicroOutput { sums: Some(sums), counts, time, samples, record: None }))
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
        let needs = Needs::default();
        let visual = match batch.images.is_empty() {
            true => None,
            false => {
                let input =
                    vision_input(runtime.features.as_deref(), batch, needs, &runtime.device)?;
                Some(self.llava.encode(input, needs)?)
            }
        };
        let ctx = StepContext::inference(0, batch.sample_ids.clone()).with_layouts(layouts(batch));
        let text = text_batch(batch);
        let forward = self.llava.forward(text, visual.as_ref(), &View::Full, None, &ctx)?;
        let losses = fast_loss(&self.llava, &forward);
        let sums = to_f32(Tensor::cat(vec![losses.ce, losses.correct], 0));
        let at = |index: usize| sums.get(index).copied().map_or(0.0, f64::from);
        Ok(ValidOutput { ce: at(0), correct: at(1), tokens: losses.tokens })
    }
}

/// Token ids and labels of a batch.
pub(crate) fn text_batch(batch: &HostBatch) -> TextBatch<'_> {
    // The two crates agree on the placeholder without depending on each other.
    const { assert!(IMAGE_TOKEN_INDEX == dualspeed_model::IMAGE_TOKEN_INDEX) };
    TextBatch { input_ids: &batch.input_ids, labels: &batch.labels }
}

/// How the tiles of a batch's images lie.
pub(crate) fn layouts(batch: &HostBatch) -> Vec<TileLayout> {
    let layout = |tiling: &Tiling| TileLayout {
        side: tiling.side,
        grid: tiling.grid,
        rows: tiling.rows.clone(),
        columns: tiling.columns.clone(),
    };
    batch.tilings.iter().map(layout).collect()
}

/// The tower's input for a batch: rows of the cache, or pixels.
pub(crate) fn vision_input<B: Backend>(
    features: Option<&FeatureCache>,
    batch: &HostBatch,
    needs: Needs,
    device: &B::Device,
) -> Result<VisionInput<B>, TrainError> {
    let missing = || TrainError::FeatureMissing { sample: batch.sample_ids.join(", ") };
    if let Some(cache) = features {
        let features = cache.features(&batch.images, needs, device).ok_or_else(missing)?;
        return Ok(VisionInput::Features(features));
    }
    let size = batch.images.first().map_or(0, |image| image.size);
    if batch.images.iter().any(|image| image.pixels.len() != 3 * size * size) {
        return Err(missing());
    }
    Ok(VisionInput::Pixels(pixel_values(&batch.images, device)))
}

/// Seconds since the last lap.
fn lap(clock: &mut Instant) -> f64 {
    let seconds = clock.elapsed().as_secs_f64();
    *clock = Instant::now();
    seconds
}
