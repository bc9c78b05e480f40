//! Growth curves as SVG.

use crate::bench::report::BenchReport;
use crate::bench::rows::{GrowthAxis, GrowthRow, Row};
use crate::report::plot::{Curve, PlotError, curves};

/// The growth curves of a report as SVG, each with the name of its file; an axis without measurements has none.
///
/// Beside the measured points stands what a step would take if its time were proportional, drawn through the last point.
///
/// # Errors
/// If the drawing library fails.
pub fn plots(report: &BenchReport) -> Result<Vec<(String, String)>, PlotError> {
    let mut plots = Vec::new();
    for axis in GrowthAxis::ALL {
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
