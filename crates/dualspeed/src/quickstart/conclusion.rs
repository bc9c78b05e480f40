//! The text at the end of a quickstart.

use std::path::Path;

use super::summary::Summary;
use crate::report::table::plain_table;

/// The table of results, the numbers beside it, and the files in `out`.
pub fn conclusion(summary: &Summary, out: &Path) -> String {
    let (header, rows) = summary.table();
    let show = |stat| summary.show(stat, 100.0, 1, " %");
    format!(
        "\n{}\n\nchance {}   without pictures {}   tower features {} (once, shared)\n{} and {}",
        plain_table(&header, &rows),
        show(summary.overall(|s| s.chance)),
        show(summary.overall(|s| s.text_only_accuracy)),
        summary.show(summary.overall(|s| s.featurise_seconds), 1.0, 0, " s"),
        out.join("report.html").display(),
        out.join("summary.json").display()
    )
}
