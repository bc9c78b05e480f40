//! What benchmarks write: one schema for all suites.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::rows::Row;
use crate::run_dir::write_json;

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
