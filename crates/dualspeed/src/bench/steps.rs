//! Whole steps of the published recipes.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use dualspeed_data::{ExampleSource, Tiling};
use dualspeed_model::{AnyresConfig, Dtype, LlavaConfig, Needs};
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::config::Schedule;
use dualspeed_train::{
    FeatureCache, METRICS_FILE, Mode, Progress, Stage, StepRecord, TrainConfig, TrainJob,
    read_metrics, train,
};
use serde::{Deserialize, Serialize};

use super::model::{Size, random};
use super::source::Synthetic;

/// One kind of step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// Its name in tables.
    pub name: &'static str,
    /// What is trained.
    pub stage: Stage,
    /// The view of the steps.
    pub mode: Mode,
    /// Slow steps with self-distillation.
    pub distill: bool,
    /// Samples per step.
    pub batch: usize,
    /// Tiles per sample.
    pub tiles: usize,
    /// Text tokens per sample.
    pub text: usize,
    /// Whether the tower runs in the step; else its features come from the host's cache.
    pub tower: bool,
    /// Whether the tiles make one image with newlines (LLaVA-NeXT's `spatial_unpad`) instead of an image each (`flat`).
    pub unpad: bool,
}

/// A fast or a full step with cached features, `[batch, tiles, text]`.
pub(super) const fn case(
    name: &'static str,
    stage: Stage,
    mode: Mode,
    [batch, tiles, text]: [usize; 3],
) -> Case {
    Case { name, stage, mode, distill: false, batch, tiles, text, tower: false, unpad: false }
}

/// The same with the tower in the step.
const fn tower(name: &'static str, stage: Stage, mode: Mode, shape: [usize; 3]) -> Case {
    Case { tower: true, ..case(name, stage, mode, shape) }
}

/// A slow step: full tokens, the fast view as the teacher, the tower for both.
const fn slow(name: &'static str, shape: [usize; 3]) -> Case {
    Case { distill: true, ..tower(name, Stage::Finetune, Mode::Slow, shape) }
}

/// The same with tiles that make one image.
const fn unpad(case: Case) -> Case {
    Case { unpad: true, ..case }
}

const STAGE_1: [usize; 3] = [32, 1, 32];
pub(super) const STAGE_2: [usize; 3] = [16, 1, 192];
const NEXT: [usize; 3] = [4, 5, 192];

/// The steps that are compared with PyTorch, then those whose ratios are DualSpeed's speed-up.
pub const CASES: [Case; 19] = [
    case("stage 1 full", Stage::Pretrain, Mode::Slow, STAGE_1),
    case("stage 1 fast", Stage::Pretrain, Mode::Fast, STAGE_1),
    case("stage 2 full", Stage::Finetune, Mode::Slow, STAGE_2),
    case("stage 2 fast", Stage::Finetune, Mode::Fast, STAGE_2),
    case("next full", Stage::Finetune, Mode::Slow, NEXT),
    case("next fast", Stage::Finetune, Mode::Fast, NEXT),
    tower("stage 1 full, tower", Stage::Pretrain, Mode::Slow, STAGE_1),
    tower("stage 1 fast, tower", Stage::Pretrain, Mode::Fast, STAGE_1),
    tower("stage 2 full, tower", Stage::Finetune, Mode::Slow, STAGE_2),
    tower("stage 2 fast, tower", Stage::Finetune, Mode::Fast, STAGE_2),
    slow("stage 2 slow, tower", STAGE_2),
    tower("next full, tower", Stage::Finetune, Mode::Slow, NEXT),
    tower("next fast, tower", Stage::Finetune, Mode::Fast, NEXT),
    slow("next slow, tower", NEXT),
    unpad(case("next unpad full", Stage::Finetune, Mode::Slow, NEXT)),
    unpad(case("next unpad fast", Stage::Finetune, Mode::Fast, NEXT)),
    unpad(tower("next unpad full, tower", Stage::Finetune, Mode::Slow, NEXT)),
    unpad(tower("next unpad fast, tower", Stage::Finetune, Mode::Fast, NEXT)),
    unpad(slow("next unpad slow, tower", NEXT)),
];

/// One measured case; times are medians over the counted steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepRow {
    /// The case.
    pub name: String,
    /// Milliseconds of a step.
    pub ms: f64,
    /// Largest less smallest of the counted steps.
    pub spread_ms: f64,
    /// Parts of the median step, in milliseconds, as far as the host sees them: on asynchronous devices work shows where
    /// it is waited for.
    pub parts_ms: [(String, f64); 5],
    /// Samples per second.
    pub samples_per_s: f64,
    /// Tokens the decoder sees per second, padding left out.
    pub tokens_per_s: f64,
    /// `4 N tokens / s` in TFLOP/s: the decoder's products with frozen weights.
    pub tflops_4n: f64,
    /// Seconds from the call to the end of the first step, data and compilation included.
    pub first_step_s: f64,
    /// GiB taken from the device after the step that took most, pools and libraries included, where the backend can tell.
    pub memory_gib: Option<f64>,
    /// The trainer's estimate.
    pub memory_estimate_gib: f64,
    /// Blocks that were computed twice.
    pub recomputed_blocks: usize,
}

/// How cases are run.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// Shapes.
    pub size: Size,
    /// Type of frozen weights and activations.
    pub dtype: Dtype,
    /// Steps before the counted ones.
    pub warmup: usize,
    /// Counted steps.
    pub steps: usize,
    /// Overrides of the configuration, as `--set` takes them.
    pub overrides: Vec<String>,
}

const GIB: f64 = (1u64 << 30) as f64;

/// Runs one case through the trainer.
///
/// # Errors
/// Whatever the trainer says.
pub fn run<B: AutodiffBackend>(
    case: &Case,
    options: &StepOptions,
    device: &B::Device,
) -> anyhow::Result<StepRow> {
    let work = prepare(case, options, options.size.config(options.dtype))?;
    measure::<B>(case, work, options, device).with_context(|| format!("step `{}`", case.name))
}

/// A case's configuration and data.
pub(super) struct Work {
    pub(super) config: TrainConfig,
    pub(super) source: Arc<dyn ExampleSource>,
}

pub(super) fn prepare(
    case: &Case,
    options: &StepOptions,
    model: LlavaConfig,
) -> anyhow::Result<Work> {
    let mut config = TrainConfig {
        stage: case.stage,
        // The last step is read back as soon as it is queued, so it is not counted.
        steps: Some((options.warmup + options.steps + 1) as u64),
        model,
        ..TrainConfig::default()
    };
    if case.stage == Stage::Pretrain {
        config.model.lora = None;
    }
    let side = config.model.vision.image_size();
    let square = [2 * side; 2];
    if case.unpad {
        let anyres = AnyresConfig { image_grid_pinpoints: vec![square], ..Default::default() };
        config.model.anyres = Some(anyres);
    }
    config.mode.schedule = Some(match case.mode {
        Mode::Fast => Schedule::AlwaysFast,
        Mode::Slow => Schedule::AlwaysSlow,
    });
    config.distill.lambda = if case.distill { 1.0 } else { 0.0 };
    config.batch.size = case.batch;
    config.data.workers = Some(2);
    let config = TrainConfig::parse(&config.to_toml()?, &options.overrides)?;
    let mut source = Synthetic::new(
        8 * config.batch.size,
        case.tiles,
        case.text,
        case.text / 2,
        config.model.text.vocab_size,
        side,
    );
    if case.unpad {
        let tiling = Tiling::new(square, &[square], side, config.model.vision.grid());
        source = source.tiled(tiling.context("two by two tiles are no grid of the tower's")?);
    }
    Ok(Work { config, source: Arc::new(source) })
}

pub(super) fn measure<B: AutodiffBackend>(
    case: &Case,
    Work { config, source }: Work,
    options: &StepOptions,
    device: &B::Device,
) -> anyhow::Result<StepRow> {
    // What earlier cases left in the pools would count here.
    B::memory_cleanup(device);
    let phase = Instant::now();
    let model = random::<B>(&config, device)?;
    B::sync(device)?;
    tracing::info!(seconds = phase.elapsed().as_secs_f64(), "weights drawn");
    let phase = Instant::now();
    let features = match case.tower {
        true => None,
        false => {
            let model = burn::module::AutodiffModule::valid(&model);
            let tower = &*model.vision_tower;
            Some(FeatureCache::compute(tower, &source, Needs::default(), 16, device, false)?)
        }
    };
    tracing::info!(seconds = phase.elapsed().as_secs_f64(), "tower features made");
    let dir = tempfile::tempdir()?;
    let begin = Instant::now();
    let outcome = train(TrainJob {
        features: features.map(Arc::new),
        save: false,
        progress: Progress::Silent,
        ..TrainJob::new(config.clone(), model, source, dir.path())
    })?;
    let whole = begin.elapsed().as_secs_f64();
    let records = read_metrics(&dir.path().join(METRICS_FILE))?;
    let later: f64 = records.iter().skip(1).map(|r| r.time.step_seconds).sum();
    let mut counted: Vec<&StepRecord> =
        records.iter().skip(options.warmup).take(options.steps).collect();
    counted.sort_by(|a, b| a.time.step_seconds.total_cmp(&b.time.step_seconds));
    let (Some(first), Some(last)) = (counted.first(), counted.last()) else {
        anyhow::bail!("no step was counted; give --steps 1 or more");
    };
    let median = counted[counted.len() / 2];
    let (seconds, split) = (median.time.step_seconds, median.time.split);
    let parts = [
        ("data", split.data),
        ("vision", split.vision),
        ("prune", split.prune),
        ("llm", split.llm),
        ("optimiser", split.optimiser),
    ];
    let tokens = median.tokens as f64 / seconds;
    let [.., decoder, _] = dualspeed_model::memory::parameters(&config.model);
    let gib = |bytes: u64| bytes as f64 / GIB;
    let kept_less = |keep: &&dualspeed_ops::Keep| **keep < dualspeed_ops::Keep::Products;
    Ok(StepRow {
        name: case.name.into(),
        ms: 1e3 * seconds,
        spread_ms: 1e3 * (last.time.step_seconds - first.time.step_seconds),
        parts_ms: parts.map(|(name, seconds)| (name.to_string(), 1e3 * seconds)),
        samples_per_s: median.samples as f64 / seconds,
        tokens_per_s: tokens,
        tflops_4n: 4.0 * decoder as f64 * tokens / 1e12,
        first_step_s: whole - later,
        memory_gib: records
            .iter()
            .filter_map(|record| record.time.device_memory_gib)
            .reduce(f64::max),
        memory_estimate_gib: gib(outcome.memory.estimate.total()),
        recomputed_blocks: outcome.memory.blocks.iter().filter(kept_less).count(),
    })
}
