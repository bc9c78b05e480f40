//! A report on data sets as one HTML page.

use dualspeed_data::check::{DataReport, Group, Histogram, Severity};

use super::text::unit;
use crate::report::html::Page;
use crate::report::plot::{Bins, PlotError, histogram};

/// Writes reports as one page without outside files.
///
/// # Errors
/// If the drawing library fails.
pub(super) fn page(reports: &[DataReport]) -> Result<String, PlotError> {
    let faults: usize = reports.iter().map(|report| report.count(Severity::Fault)).sum();
    let verdict = match faults {
        0 => "every record can be used".to_owned(),
        faults => format!("{faults} fault(s) found"),
    };
    let mut page = Page::new("Data check", &verdict);
    for report in reports {
        page = section(page, report)?;
    }
    Ok(page.finish())
}

fn section(mut page: Page, report: &DataReport) -> Result<Page, PlotError> {
    page = page.heading(&report.what).table(&["", ""].map(String::from), &overview(report));
    for (severity, title) in [(Severity::Fault, "Faults"), (Severity::Warning, "Warnings")] {
        let groups: Vec<&Group> =
            report.groups.iter().filter(|group| group.severity == severity).collect();
        if !groups.is_empty() {
            page = page.heading(title);
            page = findings(page, &groups);
        }
    }
    let plots = plots(report)?;
    if plots.is_empty() { Ok(page) } else { Ok(page.heading("Lengths and sizes").plots(&plots)) }
}

fn overview(report: &DataReport) -> Vec<Vec<String>> {
    let mut rows = vec![
        ("records", report.records.to_string()),
        ("that can be used", (report.records - report.unusable).to_string()),
        ("text only", format!("{:.1} %", 100.0 * report.text_only_share())),
        ("images", report.images.to_string()),
    ];
    if report.images_checked {
        rows.push(("image files", report.image_files.to_string()));
    }
    if let Some(max_length) = report.max_length {
        rows.push(("max_length", max_length.to_string()));
    }
    if let (Some(vocab_size), Some(largest)) = (report.vocab_size, report.largest_token_id) {
        rows.push(("rows of the embedding", vocab_size.to_string()));
        rows.push(("largest token id", largest.to_string()));
    }
    let mut rows: Vec<Vec<String>> =
        rows.into_iter().map(|(name, value)| vec![name.to_owned(), value]).collect();
    for (role, turns) in &report.roles {
        rows.push(vec![format!("turns from {role}"), turns.to_string()]);
    }
    for (key, count) in &report.unread_keys {
        rows.push(vec![format!("with the key {key}, which is not read"), count.to_string()]);
    }
    for view in &report.views {
        let mut row = |name: &str, value: usize| {
            rows.push(vec![format!("{}, {} view", name, view.view), value.to_string()]);
        };
        row(&format!("longest, in {}", unit(report)), view.lengths.max);
        if report.max_length.is_some() {
            row("cut by max_length", view.cut);
            row("that lose part of their answers", view.answers_shortened);
            row("that lose all of their answers", view.answers_cut_off);
        }
    }
    rows
}

fn findings(page: Page, groups: &[&Group]) -> Page {
    let header = ["kind", "count", "where"].map(String::from);
    let mut rows = Vec::new();
    for group in groups {
        for (at, finding) in group.first.iter().enumerate() {
            let first = |text: String| if at == 0 { text } else { String::new() };
            rows.push(vec![
                first(group.kind.clone()),
                first(group.count.to_string()),
                finding.message.clone(),
            ]);
        }
        let more = group.count - group.first.len();
        if more > 0 {
            rows.push(vec![String::new(), String::new(), format!("and {more} more")]);
        }
    }
    page.table(&header, &rows)
}

fn plots(report: &DataReport) -> Result<Vec<String>, PlotError> {
    let unit = unit(report);
    let mut plots = Vec::new();
    let mut add = |title: String, x: &str, counts: &Histogram, limit: Option<usize>| {
        if counts.count == 0 {
            return Ok(());
        }
        let bins = Bins { start: counts.start, width: counts.width, counts: counts.bins.clone() };
        // Far beyond everything there is, the limit would squeeze the bars.
        let limit = limit.filter(|limit| *limit <= 2 * counts.max.max(1));
        let limit = limit.map(|limit| (format!("max_length {limit}"), limit));
        plots.push(histogram(&title, x, "records", &bins, limit)?);
        Ok::<(), PlotError>(())
    };
    for view in &report.views {
        let title = format!("Length in {} view", view.view);
        add(title, unit, &view.lengths, report.max_length)?;
    }
    add(format!("Supervised {unit} of a record"), unit, &report.supervised, None)?;
    let sides = &report.image_sides;
    if sides.count > 0 {
        let bins = Bins { start: sides.start, width: sides.width, counts: sides.bins.clone() };
        plots.push(histogram("Longer side of an image", "pixels", "files", &bins, None)?);
    }
    Ok(plots)
}
