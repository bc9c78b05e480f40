//! A report on a data set as text.

use dualspeed_data::check::{DataReport, Severity, ViewReport};

/// Writes a report as text.
pub(crate) fn report_text(report: &DataReport) -> String {
    let unit = unit(report);
    let mut lines = vec![format!(
        "{}: {} records, {} can be used, {} cannot",
        report.what,
        report.records,
        report.records - report.unusable,
        report.unusable
    )];
    let files = match report.images_checked {
        true => format!("in {} files", report.image_files),
        false => "(not decoded)".to_owned(),
    };
    lines.push(format!(
        "  {} images {files}, {:.1} % of the records are text only",
        report.images,
        100.0 * report.text_only_share()
    ));
    if !report.roles.is_empty() {
        let roles = report.roles.iter().map(|(role, turns)| format!("{role} {turns}"));
        lines.push(format!("  turns by role: {}", roles.collect::<Vec<_>>().join(", ")));
    }
    if let (Some(rows), Some(largest)) = (report.vocab_size, report.largest_token_id) {
        lines.push(format!("  largest token id: {largest}, of an embedding of {rows} rows"));
    }
    lines.extend(report.views.iter().map(|view| format!("  {}", view_text(report, view, unit))));
    for severity in [Severity::Fault, Severity::Warning] {
        let groups: Vec<_> =
            report.groups.iter().filter(|group| group.severity == severity).collect();
        if groups.is_empty() {
            continue;
        }
        lines.push(match severity {
            Severity::Fault => "faults".to_owned(),
            Severity::Warning => "warnings".to_owned(),
        });
        for group in groups {
            lines.push(format!("{:>8}  {}", group.count, group.kind));
            lines
                .extend(group.first.iter().map(|finding| format!("          {}", finding.message)));
            let more = group.count - group.first.len();
            if more > 0 {
                lines.push(format!("          and {more} more"));
            }
        }
    }
    let per_minute = 60.0 * report.records as f64 / report.seconds.max(1e-9);
    lines.push(format!("checked in {:.1} s, {per_minute:.0} records a minute", report.seconds));
    lines.join("\n")
}

/// What lengths are counted in.
pub(super) fn unit(report: &DataReport) -> &'static str {
    if report.in_words { "words" } else { "tokens" }
}

fn view_text(report: &DataReport, view: &ViewReport, unit: &str) -> String {
    let lengths = &view.lengths;
    let mut text = format!(
        "{} view: {} to {} {unit}, half of them at most {}, 99 % at most {}",
        view.view, lengths.min, lengths.max, lengths.median, lengths.p99
    );
    if let Some(max_length) = report.max_length {
        text += &format!(
            "; max_length {max_length} cuts {}: {} lose part of their answers, {} all of them",
            view.cut, view.answers_shortened, view.answers_cut_off
        );
    }
    text
}
