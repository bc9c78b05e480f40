//! Measurements of suite `growth`.

use serde::{Deserialize, Serialize};

/// The quantity along the x axis of a growth curve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GrowthAxis {
    /// Visual tokens of a sample before pruning.
    Tokens,
    /// Samples per step.
    Batch,
    /// The decoder's parameters, in millions.
    Size,
}

impl GrowthAxis {
    /// The axes in the order they are measured.
    pub(in crate::bench) const ALL: [Self; 3] = [Self::Tokens, Self::Batch, Self::Size];

    /// The word in rows' names and files' names.
    pub(in crate::bench) fn name(self) -> &'static str {
        match self {
            Self::Tokens => "tokens",
            Self::Batch => "batch",
            Self::Size => "size",
        }
    }

    /// The text at the axis of a plot.
    pub(in crate::bench) fn label(self) -> &'static str {
        match self {
            Self::Tokens => "visual tokens per sample, before pruning",
            Self::Batch => "samples per step",
            Self::Size => "parameters of the decoder, millions",
        }
    }
}

/// A point of a growth curve; numbers are absent where the device's memory cannot hold the step, or the step failed on it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GrowthRow {
    /// GrowthAxis, place on it and view, `tokens 576, fast`.
    pub name: String,
    /// The quantity that grows along the curve.
    pub axis: GrowthAxis,
    /// The place on the axis, in the axis' unit.
    pub x: f64,
    /// `full` (all visual tokens) or `fast` (pruned).
    pub series: String,
    /// What stays the same along the axis.
    pub setting: String,
    /// Milliseconds of a step: the median.
    pub ms: Option<f64>,
    /// Milliseconds of the slowest counted step less those of the fastest.
    pub spread_ms: Option<f64>,
    /// Samples per second.
    pub samples_per_s: Option<f64>,
    /// Tokens the decoder sees per second, padding left out.
    pub tokens_per_s: Option<f64>,
    /// `4 N tokens / s` in TFLOP/s, `N` the decoder's parameters.
    pub tflops_4n: Option<f64>,
    /// GiB taken from the device, where the backend can tell.
    pub memory_gib: Option<f64>,
    /// GiB that the trainer estimated before the first step.
    pub memory_estimate_gib: f64,
    /// The reason why there are no numbers.
    pub skipped: Option<String>,
}
