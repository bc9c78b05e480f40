//! Measurements of suite `prune`.

use serde::{Deserialize, Serialize};

/// A pruner, or something beside it, at one shape.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PruneRow {
    /// The pruner and its shape, `prune divprune 16x576x4096 -> 57`.
    pub name: String,
    /// The pruner's specification, `tower`, or the product of all pairs.
    pub pruner: String,
    /// Tokens per image.
    pub tokens: usize,
    /// Images in the batch.
    pub batch: usize,
    /// Tokens kept per image.
    pub keep: usize,
    /// Median milliseconds of the whole batch; absent where the pruner cannot keep that many.
    pub ms: Option<f64>,
    /// Milliseconds of the slowest run less those of the fastest.
    pub spread_ms: Option<f64>,
}
