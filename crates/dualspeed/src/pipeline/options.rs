//! What a caller says about a checkpoint that its files do not, or say otherwise.

use std::path::PathBuf;

use dualspeed_data::{FitMode, Template};
use dualspeed_model::import::LoadOptions;

/// How a checkpoint becomes a pipeline; `None` leaves a choice to the checkpoint's files.
#[derive(Clone, Debug, Default)]
pub struct PipelineOptions {
    /// Precision of the weights, and what is put on the checkpoint: vision tower, adapter, parts. Each may be a name on the hub.
    pub load: LoadOptions,
    /// The CLIP checkpoint that the vision tower is from: its projection of images, for text-guided pruners.
    pub clip: Option<PathBuf>,
    /// How conversations are written out.
    pub template: Option<Template>,
    /// The system prompt; an empty one leaves it out.
    pub system: Option<String>,
    /// How rectangles become squares.
    pub fit: Option<FitMode>,
    /// Whether downloads show a progress bar.
    pub progress: bool,
}
