//! What benchmarks write: one schema for all suites.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Context;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::growth::GrowthRow;
use super::ops::OpRow;
use super::prune::PruneRow;
use super::steps::StepRow;
use crate::run::write_json;

/// What is timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// Whole training steps of the published recipes.
    Steps,
    /// Single operations, a decoder block, the vision tower.
    Ops,
    /// Pruners.
    Prune,
    /// How a step's time grows with visual tokens, batch and model.
    Growth,
}

impl Suite {
    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
    }
}

/// One measurement. In JSON, `suite` says of which suite; all have `name`, `ms` (median) and `spread_ms`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "suite", rename_all = "snake_case")]
pub enum Row {
    /// A training step.
    Step(StepRow),
    /// An operation.
    Op(OpRow),
    /// A pruner.
    Prune(PruneRow),
    /// A point of a growth curve.
    Growth(GrowthRow),
}

impl Row {
    /// What was measured.
    pub fn name(&self) -> &str {
        match self {
            Self::Step(row) => &row.name,
            Self::Op(row) => &row.name,
            Self::Prune(row) => &row.name,
            Self::Growth(row) => &row.name,
        }
    }
}

/// What a benchmark writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BenchReport {
    /// The backend and its device.
    pub device: String,
    /// The day, UTC, `2026-11-24`.
    pub date: String,
    /// The command line.
    pub command: String,
    /// Shapes of the model.
    pub size: String,
    /// Type of frozen weights and activations.
    pub dtype: String,
    /// The measurements.
    pub rows: Vec<Row>,
}

impl BenchReport {
    /// Reads what [`write`](BenchReport::write) wrote.
    ///
    /// # Errors
    /// If there is no such file, or it is no report.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
        serde_json::from_str(&text).with_context(|| {
            format!("{shown} is no report of `dualspeed bench`; give a file that its --json wrote")
        })
    }

    /// Writes the report as JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_json(path, self)
    }
}

/// Which rows are wanted.
#[derive(Clone, Debug, Default)]
pub struct Filter(pub Vec<String>);

impl Filter {
    /// Whether a row is: all are without a filter, else those whose name contains one of the filter's.
    pub fn wants(&self, name: &str) -> bool {
        self.0.is_empty() || self.0.iter().any(|wanted| name.contains(wanted.as_str()))
    }

    /// The same among `known` names: a filter that is one of them means that one only.
    pub fn wants_of(&self, name: &str, known: &[&str]) -> bool {
        let fits = |wanted: &String| match known.contains(&wanted.as_str()) {
            true => name == wanted,
            false => name.contains(wanted.as_str()),
        };
        self.0.is_empty() || self.0.iter().any(fits)
    }

    /// Says that no row was wanted.
    ///
    /// # Errors
    /// Always, when `rows` is 0.
    pub fn ensure_some(&self, rows: usize, suite: Suite, known: &[&str]) -> anyhow::Result<()> {
        let (wanted, suite) = (self.0.join("`, `"), suite.name());
        let known = known.join("; ");
        anyhow::ensure!(rows > 0, "no row of suite {suite} fits --case `{wanted}`; known: {known}");
        Ok(())
    }
}

/// Today, UTC.
pub fn today() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |t| t.as_secs());
    date(seconds / 86_400)
}

/// The day that is `days` after 1970-01-01.
fn date(mut days: u64) -> String {
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    let mut year = 1970;
    while days >= 365 + u64::from(leap(year)) {
        days -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if days < length {
            break;
        }
        days -= length;
        month += 1;
    }
    format!("{year}-{month:02}-{:02}", days + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_have_dates() {
        let dates = [(0, "1970-01-01"), (59, "1970-03-01"), (11_016, "2000-02-29")];
        for (days, expected) in dates.into_iter().chain([(20_453, "2025-12-31")]) {
            assert_eq!(date(days), expected);
        }
    }

    #[test]
    fn a_filter_that_is_a_name_means_that_name_only() {
        let known = ["stage 2 full", "stage 2 full, tower"];
        let wanted = |filter: &str| {
            let filter = Filter(vec![filter.into()]);
            known.map(|name| filter.wants_of(name, &known))
        };
        assert_eq!(wanted("stage 2 full"), [true, false]);
        assert_eq!(wanted("stage 2"), [true, true]);
        assert_eq!(wanted("stage 1"), [false, false]);
        assert!(Filter::default().wants("anything"));
    }
}
