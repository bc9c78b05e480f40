//! A report on a checkpoint as text.

use std::fmt::Write;

use super::report::InspectReport;

/// The report as text for people.
pub(super) fn text(report: &InspectReport) -> Result<String, std::fmt::Error> {
    let mut out = String::new();
    let InspectReport { path, architecture, parameters, dtypes, trainable, memory } = report;
    writeln!(out, "{path}\n{architecture}\n")?;
    writeln!(out, "parameters")?;
    let total: u64 = parameters.values().sum();
    for (part, count) in parameters.iter().chain([(&"total".to_owned(), &total)]) {
        writeln!(out, "  {part:<16} {:>14}", grouped(*count))?;
    }
    writeln!(out, "element types")?;
    for (dtype, count) in dtypes {
        writeln!(out, "  {dtype:<16} {:>14}", grouped(*count))?;
    }
    writeln!(
        out,
        "trained in stage 2{}",
        if parameters.contains_key("lora") { " (adapters)" } else { "" }
    )?;
    for (part, count) in trainable {
        writeln!(out, "  {part:<16} {:>14}", grouped(*count))?;
    }
    writeln!(
        out,
        "memory, estimated for a batch of {} with {} tokens each",
        memory.batch, memory.sequence
    )?;
    let mut rows =
        vec![("weights", memory.weights), ("generating: keys and values", memory.key_value_cache)];
    if let Some(training) = &memory.training {
        rows.extend([
            ("training: weights, states", training.frozen + training.trained),
            ("training: activations", training.blocks + training.working),
            ("training: all", training.total()),
        ]);
    }
    for (what, bytes) in rows {
        writeln!(out, "  {what:<30} {:>10.3} GB", bytes as f64 / 1e9)?;
    }
    Ok(out)
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let (first, rest) = digits.split_at((digits.len() - 1) % 3 + 1);
    let groups = rest.as_bytes().chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    std::iter::once(first.to_owned()).chain(groups).collect::<Vec<_>>().join(",")
}
