//! A case, run through the trainer.

use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use dualspeed_data::{ExampleSource, Tiling};
use dualspeed_model::{AnyresConfig, Dtype, LlavaConfig, Needs};
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::{
    FeatureCache, METRICS_FILE, Mode, Progress, Stage, StepRecord, TrainConfig, TrainJob,
    read_metrics, train,
};

use super::cases::StepCase;
use crate::bench::model_size::ModelSize;
use crate::bench::random_model::random_model;
use crate::bench::rows::StepRow;
use crate::bench::synthetic_source::SyntheticSource;

/// The model, its precision, and the number of steps of every case.
#[derive(Clone, Debug)]
pub struct StepOptions {
    /// The size of the model.
    pub size: ModelSize,
    /// The element type of frozen weights and activations.
    pub dtype: Dtype,
    /// Steps before those, not counted.
    pub warmup: usize,
    /// Steps that are counted.
    pub steps: usize,
    /// Overrides of the configuration, as `--set` takes them.
    pub overrides: Vec<String>,
}

/// Bytes of a GiB.
pub(in crate::bench) const GIB: f64 = (1u64 << 30) as f64;

/// The configuration and the random data of a case.
pub(in crate::bench) struct PreparedStep {
    pub(in crate::bench) config: TrainConfig,
    pub(in crate::bench) source: Arc<dyn ExampleSource>,
}

/// Configures a training of `model` that runs the steps of `case`, with random data for it.
///
/// # Errors
/// If an override is malformed, or the model's vision tower has no grid of tiles.
pub(in crate::bench) fn prepare(
    case: &StepCase,
    options: &StepOptions,
    model: LlavaConfig,
) -> anyhow::Result<PreparedStep> {
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
    let side = config.model.vision.geometry().image_size;
    let square = [2 * side; 2];
    if case.unpad {
        let anyres = AnyresConfig { image_grid_pinpoints: vec![square], ..Default::default() };
        config.model.anyres = Some(anyres);
    }
    config.mode.schedule = Some(match case.mode {
        Mode::Fast => "always_fast".to_owned(),
        Mode::Slow => "always_slow".to_owned(),
    });
    config.distill.lambda = if case.distill { 1.0 } else { 0.0 };
    config.batch.size = case.batch;
    config.data.workers = Some(2);
    let config = TrainConfig::parse(&config.to_toml()?, &options.overrides)?;
    let mut source = SyntheticSource::new(
        8 * config.batch.size,
        case.tiles,
        case.text,
        case.text / 2,
        config.model.text.vocab_size,
        side,
    );
    if case.unpad {
        let tiling = Tiling::new(square, &[square], side, config.model.visual_grid());
        source = source.tiled(tiling.context("two by two tiles are no grid of the tower's")?);
    }
    Ok(PreparedStep { config, source: Arc::new(source) })
}

/// Trains as prepared, and gives the median of the counted steps.
///
/// # Errors
/// Whatever the trainer reports.
pub(in crate::bench) fn measure<B: AutodiffBackend>(
    case: &StepCase,
    PreparedStep { config, source }: PreparedStep,
    options: &StepOptions,
    device: &B::Device,
) -> anyhow::Result<StepRow> {
    // What earlier cases left in the pools would count here.
    B::memory_cleanup(device);
    let phase = Instant::now();
    let model = random_model::<B>(&config, device)?;
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
