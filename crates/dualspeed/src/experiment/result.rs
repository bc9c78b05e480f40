//! The result of one training.

use std::collections::BTreeMap;

use dualspeed_train::EvalReport;
use serde::{Deserialize, Serialize};

/// What one training scored and cost; written as `result.json` into its run directory.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// The name of the experiment's arm.
    pub name: String,
    /// The seed of weights and data.
    pub seed: u64,
    /// Test results in the views `full`, `pruned` and `pruned_no_isolator`.
    pub test: EvalReport,
    /// Full inference on the held-out vendor's drawings.
    pub held_out: EvalReport,
    /// Seconds of training: projector, pruning, language model, optimiser.
    pub train_seconds: f64,
    /// Number of optimiser steps.
    pub steps: u64,
    /// Share of slow steps among them, 0 to 1.
    pub slow_share: f64,
    /// Seconds of running the frozen tower over the training set, shared with other runs.
    pub featurise_seconds: f64,
    /// Accuracy of always giving the most frequent answer.
    pub chance: f64,
}

impl RunResult {
    /// Accuracy in a view; 0 if it was not evaluated.
    pub fn accuracy(&self, view: &str) -> f64 {
        self.test.view(view).map_or(0.0, |v| v.accuracy)
    }

    /// Visual tokens per picture in a view.
    pub fn visual_tokens(&self, view: &str) -> f64 {
        self.test.view(view).map_or(0.0, |v| v.visual_tokens)
    }

    /// Accuracy by kind of question, full inference.
    pub fn by_kind(&self) -> BTreeMap<String, f64> {
        let kinds = self.test.view("full").map(|v| &v.by_kind);
        kinds.into_iter().flatten().map(|(k, a)| (k.name().to_string(), a.accuracy)).collect()
    }
}
