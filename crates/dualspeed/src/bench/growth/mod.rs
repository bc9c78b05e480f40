//! How the time of a whole step, tower and update included, grows with visual tokens, batch and model.

mod plots;
mod points;

use dualspeed_ops::AutodiffBackend;
use dualspeed_train::{MemoryPlan, Mode, Stage, TrainError};

use super::filter::Filter;
use super::rows::{GrowthRow, Row, Sink};
use super::steps::{GIB, StepCase, StepOptions, measure, prepare, step_case};
use super::suite::Suite;
pub use plots::plots;
use points::{GrowthPoint, points};

/// Measures every point that `filter` chooses, with all visual tokens and with the pruned ones.
///
/// # Errors
/// Whatever the trainer or `sink` reports, or a filter that fits nothing.
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
                sink(Row::Growth(measure_point::<B>(
                    &point, mode, name, series, options, device,
                )?))?;
                rows += 1;
            } else {
                known.push(name);
            }
        }
    }
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    filter.ensure_some(rows, Suite::Growth, &known)
}

fn measure_point<B: AutodiffBackend>(
    point: &GrowthPoint,
    mode: Mode,
    name: String,
    series: &str,
    options: &StepOptions,
    device: &B::Device,
) -> anyhow::Result<GrowthRow> {
    let case = StepCase { tower: true, ..step_case("growth", Stage::Finetune, mode, point.shape) };
    let prepared = prepare(&case, options, point.model.clone())?;
    // The weights of the point before must not count as taken.
    B::memory_cleanup(device);
    B::sync(device)?;
    let plan = MemoryPlan::new::<B>(&prepared.config, &*prepared.source, false, device)?;
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
    let step = match measure::<B>(&case, prepared, options, device) {
        Ok(step) => step,
        // The estimate was too low, or the device gave up: the other points may do.
        Err(error) if is_device_failure(&error) => {
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
fn is_device_failure(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(TrainError::Step { .. } | TrainError::Device { .. }))
}
