//! Measurements as lines of a table.

use crate::bench::{Row, Suite};

/// The head of a suite's table.
pub(super) fn header(suite: Suite) -> String {
    match suite {
        Suite::Steps => format!(
            "{:<24} {:>9} {:>8} {:>10} {:>10} {:>9} {:>8} {:>9} {:>8}",
            "step", "ms", "spread", "samples/s", "tokens/s", "TFLOP/s", "GiB", "first, s", "twice"
        ),
        Suite::Ops => format!(
            "{:<52} {:>11} {:>9} {:>9} {:>10}",
            "operation", "ms", "spread", "TFLOP/s", "first, ms"
        ),
        Suite::Prune => format!("{:<52} {:>11} {:>9}", "pruner", "ms", "spread"),
        Suite::Growth => format!(
            "{:<24} {:>9} {:>8} {:>10} {:>10} {:>9} {:>8}",
            "growth", "ms", "spread", "samples/s", "tokens/s", "TFLOP/s", "GiB"
        ),
    }
}

/// A row of a suite's table.
pub(super) fn line(row: &Row) -> String {
    let shown = |value: Option<f64>, digits: usize| {
        value.map_or("-".to_string(), |value| format!("{value:.digits$}"))
    };
    match row {
        Row::Step(row) => format!(
            "{:<24} {:>9.1} {:>8.1} {:>10.1} {:>10.0} {:>9.1} {:>8} {:>9.1} {:>8}",
            row.name,
            row.ms,
            row.spread_ms,
            row.samples_per_s,
            row.tokens_per_s,
            row.tflops_4n,
            shown(row.memory_gib, 1),
            row.first_step_s,
            row.recomputed_blocks
        ),
        Row::Op(row) => format!(
            "{:<52} {:>11.4} {:>9.4} {:>9} {:>10.1}",
            row.name,
            row.ms,
            row.spread_ms,
            shown(row.tflops, 1),
            row.first_ms
        ),
        Row::Prune(row) => {
            format!("{:<52} {:>11} {:>9}", row.name, shown(row.ms, 3), shown(row.spread_ms, 3))
        }
        Row::Growth(row) => match &row.skipped {
            Some(why) => format!("{:<24} left out: {why}", row.name),
            None => format!(
                "{:<24} {:>9} {:>8} {:>10} {:>10} {:>9} {:>8}",
                row.name,
                shown(row.ms, 1),
                shown(row.spread_ms, 1),
                shown(row.samples_per_s, 1),
                shown(row.tokens_per_s, 0),
                shown(row.tflops_4n, 1),
                shown(row.memory_gib, 1)
            ),
        },
    }
}
