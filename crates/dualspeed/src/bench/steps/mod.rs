//! Whole steps of the published recipes.

mod cases;
mod measure;

use anyhow::Context;
use dualspeed_ops::AutodiffBackend;

use super::filter::Filter;
use super::rows::{Row, Sink, StepRow};
use super::suite::Suite;
pub use cases::{CASES, StepCase};
pub(super) use cases::{STAGE_2, step_case};
pub use measure::StepOptions;
pub(super) use measure::{GIB, measure, prepare};

/// Measures the cases that `filter` chooses.
///
/// # Errors
/// The failures of all cases that failed, once the others have been measured; a filter that fits nothing; or whatever
/// `sink` reports.
pub fn run<B: AutodiffBackend>(
    options: &StepOptions,
    filter: &Filter,
    device: &B::Device,
    sink: Sink<'_>,
) -> anyhow::Result<()> {
    let known: Vec<&str> = CASES.iter().map(|case| case.name).collect();
    let (mut rows, mut failed) = (0, Vec::new());
    for case in CASES.iter().filter(|case| filter.wants_of(case.name, &known)) {
        rows += 1;
        match run_case::<B>(case, options, device) {
            Ok(row) => sink(Row::Step(row))?,
            // The other steps may still fit.
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    filter.ensure_some(rows, Suite::Steps, &known)
}

fn run_case<B: AutodiffBackend>(
    case: &StepCase,
    options: &StepOptions,
    device: &B::Device,
) -> anyhow::Result<StepRow> {
    let prepared = prepare(case, options, options.size.config(options.dtype))?;
    measure::<B>(case, prepared, options, device).with_context(|| format!("step `{}`", case.name))
}
