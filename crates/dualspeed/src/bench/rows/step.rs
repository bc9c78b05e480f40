//! Measurements of suite `steps`.

use serde::{Deserialize, Serialize};

/// A training step; times are medians over the counted steps.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StepRow {
    /// The name of the step's case.
    pub name: String,
    /// Milliseconds of a step: the median.
    pub ms: f64,
    /// Milliseconds of the slowest counted step less those of the fastest.
    pub spread_ms: f64,
    /// Parts of the median step, in milliseconds, as far as the host sees them: on asynchronous devices work shows where
    /// it is waited for.
    pub parts_ms: [(String, f64); 5],
    /// Samples per second.
    pub samples_per_s: f64,
    /// Tokens the decoder sees per second, padding left out.
    pub tokens_per_s: f64,
    /// `4 N tokens / s` in TFLOP/s, `N` the decoder's parameters: the decoder's products with frozen weights.
    pub tflops_4n: f64,
    /// Seconds from the call to the end of the first step, data and compilation included.
    pub first_step_s: f64,
    /// GiB taken from the device after the step that took most, pools and libraries included, where the backend can tell.
    pub memory_gib: Option<f64>,
    /// GiB that the trainer estimated before the first step.
    pub memory_estimate_gib: f64,
    /// Decoder blocks whose forward pass is computed again in the backward pass.
    pub recomputed_blocks: usize,
}
