//! Benchmarks of whole training steps, through the trainer that runs use: the same loop, data path and optimiser.
//!
//! Weights are random, drawn on the device; so are pictures and text. Nothing is zero.

mod model;
mod source;
pub mod steps;

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::run::write_json;

pub use model::Size;
pub use steps::{Case, StepRow};

/// What a benchmark writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BenchReport {
    /// The backend and its device.
    pub device: String,
    /// The command line.
    pub command: String,
    /// Shapes of the model.
    pub size: String,
    /// One row per case.
    pub rows: Vec<StepRow>,
}

impl BenchReport {
    /// Writes the report as JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        write_json(path, self)
    }
}
