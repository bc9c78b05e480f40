//! Measurements of suite `ops`.

use serde::{Deserialize, Serialize};

/// One operation, forward or backward.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpRow {
    /// The operation and its shape; those of Burn's own bodies end with `plain`.
    pub name: String,
    /// Milliseconds of a call: the median of seven blocks of calls.
    pub ms: f64,
    /// Milliseconds between the fastest and the slowest of the middle five blocks.
    pub spread_ms: f64,
    /// TFLOP/s; `None` where memory is what limits the operation.
    pub tflops: Option<f64>,
    /// Milliseconds of the first call, compilation included.
    pub first_ms: f64,
}
