//! The file of measurements: one schema for all suites.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::rows::Row;
use crate::files::write_json;

/// The measurements of one call of `dualspeed bench`, with what they were made on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BenchReport {
    /// The backend and its device.
    pub device: String,
    /// The date in UTC, `2026-11-24`.
    pub date: String,
    /// The command line that made them.
    pub command: String,
    /// The size of the model.
    pub size: String,
    /// The element type of frozen weights and activations.
    pub dtype: String,
    /// The measurements, in the order they were made.
    pub rows: Vec<Row>,
}

impl BenchReport {
    /// Reads a report from JSON.
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
