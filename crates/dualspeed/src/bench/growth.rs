//! How the time of a whole step, tower and update included, grows with visual tokens, batch and model.

use dualspeed_model::{Dtype, LlavaConfig, VitConfig, memory};
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::{MemoryPlan, Mode, Stage, TrainError};
use serde::{Deserialize, Serialize};

use super::Sink;
use super::model::Size;
use super::report::{BenchReport, Filter, Row, Suite};
use super::steps::{Case, STAGE_2, StepOptions, case, measure, prepare};
use crate::report::plot::{Curve, PlotError, curves};

/// What grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Axis {
    /// Visual tokens of a sample before pruning.
    Tokens,
    /// Samples per step.
    Batch,
    /// The decoder's parameters, in millions.
    Size,
}

impl Axis {
    const ALL: [Self; 3] = [Self::Tokens, Self::Batch, Self::Size];

    fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Batch => "batch",
            Self::Size => "size",
        }
    }

    fn label(self) -> &'static str {
        match self {
            Self::Tokens => "visual tokens per sample, before pruning",
            Self::Batch => "samples per step",
            Self::Size => "parameters of the decoder, millions",
        }
    }
}

/// A point of a growth curve; numbers are absent where the device's memory cannot hold the step, or the step failed on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GrowthRow {
    /// Axis, place on it and view, `tokens 576, fast`.
    pub name: String,
    /// What grows.
    pub axis: Axis,
    /// The place on the axis, in the axis' unit.
    pub x: f64,
    /// `full` or `fast`.
    pub series: String,
    /// What stays the same along the axis.
    pub setting: String,
    /// Milliseconds of a step: the median.
    pub ms: Option<f64>,
    /// Largest less smallest of the counted steps.
    pub spread_ms: Option<f64>,
    /// Samples per second.
    pub samples_per_s: Option<f64>,
    /// Tokens the decoder sees per second, padding left out.
    pub tokens_per_s: Option<f64>,
    /// `4 N tokens / s` in TFLOP/s.
    pub tflops_4n: Option<f64>,
    /// GiB taken from the device, where the backend can tell.
    pub memory_gib: Option<f64>,
    /// The trainer's estimate in GiB.
    pub memory_estimate_gib: f64,
    /// Why there are no numbers.
    pub skipped: Option<String>,
}

/// A model and a step on an axis.
struct Point {
    axis: Axis,
    x: f64,
    label: String,
    setting: String,
    model: LlavaConfig,
    shape: [usize; 3],
}

/// Sides of the picture, in patches, and tiles: 64 to 5760 tokens with pictures of up to 24 x 24 patches.
const TOKENS: [(usize, usize); 7] = [(8, 1), (16, 1), (24, 1), (24, 2), (24, 4), (24, 7), (24, 10)];
const TINY_TOKENS: [(usize, usize); 5] = [(4, 1), (8, 1), (12, 1), (12, 2), (12, 4)];

fn points(size: Size, dtype: Dtype) -> Vec<Point> {
    let tiny = size == Size::Tiny;
    let base = size.config(dtype);
    // All sizes have CLIP's tower.
    let tower = base.vision.vit().cloned().unwrap_or_default();
    let mut points = Vec::new();
    let (batch, text) = if tiny { (2, 32) } else { (4, 64) };
    for &(side, tiles) in if tiny { &TINY_TOKENS[..] } else { &TOKENS[..] } {
        let image_size = side * tower.patch_size;
        let vision = VitConfig { image_size, ..tower.clone() };
        let tokens = tiles * vision.num_tokens();
        points.push(Point {
            axis: Axis::Tokens,
            x: tokens as f64,
            label: tokens.to_string(),
            setting: format!("{}, batch {batch}, {text} text tokens", size.name()),
            model: LlavaConfig { vision: vision.into(), ..base.clone() },
            shape: [batch, tiles, text],
        });
    }
    let [batch, tiles, text] = if tiny { [4, 1, 32] } else { STAGE_2 };
    let tokens = base.vision.num_tokens();
    let shape = format!("{tokens} visual + {text} text tokens");
    for batch in [1, 2, 4, 8, 16, 32] {
        points.push(Point {
            axis: Axis::Batch,
            x: batch as f64,
            label: batch.to_string(),
            setting: format!("{}, {shape}", size.name()),
            model: base.clone(),
            shape: [batch, tiles, text],
        });
    }
    let published = [Size::Small, Size::Medium, Size::Llava7b, Size::Llava13b];
    let models: Vec<(String, LlavaConfig)> = match tiny {
        false => published.map(|size| (size.name(), size.config(dtype))).to_vec(),
        true => [1, 2, 4, 8]
            .map(|layers| {
                let mut model = base.clone();
                model.text.num_hidden_layers = layers;
                (format!("{layers} layers"), model)
            })
            .to_vec(),
    };
    for (label, model) in models {
        let [.., decoder, _] = memory::parameters(&model);
        points.push(Point {
            axis: Axis::Size,
            x: decoder as f64 / 1e6,
            label,
            setting: format!("batch {batch}, {shape}"),
            model,
            shape: [batch, tiles, text],
        });
    }
    points
}

/// Measures every point that `filter` wants, with all visual tokens and with the pruned ones.
///
/// # Errors
/// Whatever the trainer says, or a filter that fits nothing.
pub fn run<B: AutodiffBackend>(
    options: &StepOptions,
    filter: &Filter,
    device: &B::Device,
    sink: Sink<'_>,
) -> anyhow::Result<()> {
    let mut rows = 0;
    let mut known = Vec::new();
    for point in points(options.size, options.dtype) {
        for mode in [Mode::Slow, Mode::Fast] {
            let series = if mode == Mode::Fast { "fast" } else { "full" };
            let name = format!("{} {}, {series}", point.axis.name(), point.label);
            if filter.wants(&name) {
                sink(Row::Growth(one::<B>(&point, mode, name, series, options, device)?))?;
                rows += 1;
            } else {
                known.push(name);
            }
        }
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    filter.ensure_some(rows, Suite::Growth, &known)
}

const GIB: f64 = (1u64 << 30) as f64;

fn one<B: AutodiffBackend>(
    point: &Point,
    mode: Mode,
    name: String,
    series: &str,
    options: &StepOptions,
    device: &B::Device,
) -> anyhow::Result<GrowthRow> {
    let case = Case { tower: true, ..case("growth", Stage::Finetune, mode, point.shape) };
    let work = prepare(&case, options, point.model.clone())?;
    // The weights of the point before must not count as taken.
    B::memory_cleanup(device);
    B::sync(device)?;
    let plan = MemoryPlan::new::<B>(&work.config, &*work.source, false, device)?;
    let mut row = GrowthRow {
        name,
        axis: point.axis,
        x: point.x,
        series: series.to_string(),
        setting: point.setting.clone(),
        ms: None,
        spread_ms: None,
        samples_per_s: None,
        tokens_per_s: None,
        tflops_4n: None,
        memory_gib: None,
        memory_estimate_gib: plan.estimate.total() as f64 / GIB,
        skipped: None,
    };
    if plan.exceeds() {
        row.skipped = Some(plan.to_string());
        return Ok(row);
    }
    let step = match measure::<B>(&case, work, options, device) {
        Ok(step) => step,
        // The estimate was too low, or the device gave up: the other points may do.
        Err(error) if is_of_the_device(&error) => {
            row.skipped = Some(error.to_string());
            return Ok(row);
        }
        Err(error) => return Err(error),
    };
    Ok(GrowthRow {
        ms: Some(step.ms),
        spread_ms: Some(step.spread_ms),
        samples_per_s: Some(step.samples_per_s),
        tokens_per_s: Some(step.tokens_per_s),
        tflops_4n: Some(step.tflops_4n),
        memory_gib: step.memory_gib,
        memory_estimate_gib: step.memory_estimate_gib,
        ..row
    })
}

/// Whether a step failed on the device, out of memory for one, and not for its configuration.
fn is_of_the_device(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(TrainError::Step { .. } | TrainError::Device { .. }))
}

/// The growth curves of a report as SVG, each with the name of its file; an axis without measurements has none.
///
/// Beside the measured points stands what a step would take if its time were proportional, drawn through the last point.
///
/// # Errors
/// If the drawing library fails.
pub fn plots(report: &BenchReport) -> Result<Vec<(String, String)>, PlotError> {
    let mut plots = Vec::new();
    for axis in Axis::ALL {
        let rows: Vec<&GrowthRow> = report
            .rows
            .iter()
            .filter_map(|row| match row {
                Row::Growth(row) if row.axis == axis && row.ms.is_some() => Some(row),
                _ => None,
            })
            .collect();
        let Some(first) = rows.first() else { continue };
        let (mut measured, mut lines) = (Vec::new(), Vec::new());
        for series in ["full", "fast"] {
            let of = rows.iter().filter(|row| row.series == series);
            let points: Vec<(f64, f64)> =
                of.filter_map(|row| row.ms.map(|ms| (row.x, ms))).collect();
            if let Some(last) = points.iter().copied().reduce(|a, b| if b.0 > a.0 { b } else { a })
            {
                lines.push(Curve {
                    name: format!("{series}, were it proportional"),
                    points: vec![(0.0, 0.0), last],
                    dots: false,
                });
                measured.push(Curve { name: series.to_string(), points, dots: true });
            }
        }
        measured.extend(lines);
        let title = format!("Training step: {}", first.setting);
        let svg = curves(&title, axis.label(), "step, milliseconds", &measured)?;
        plots.push((format!("growth-{}.svg", axis.name()), svg));
    }
    Ok(plots)
}
