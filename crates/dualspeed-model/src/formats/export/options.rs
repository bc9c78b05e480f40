//! How a model is written.

use crate::formats::import::tensor::FloatType;

/// The vision tower's directory in LLaVA's own layout.
pub const TOWER: &str = "vision_tower";

/// How a model is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// What weights become; their own type by default.
    pub dtype: Option<FloatType>,
    /// Bytes of a shard, about.
    pub shard: usize,
    /// Ids that the configuration names.
    pub tokens: Tokens,
    /// LLaVA's layout: what the configuration calls the vision tower; left out: `vision_tower`, its directory beside the weights. The
    /// published code finds that from its working directory, so it wants the whole path.
    pub tower: Option<String>,
    /// LLaVA's layout: how rectangles become squares, `pad` or `square`. Images of any resolution are `anyres` whatever this says.
    pub image_aspect_ratio: Option<String>,
}

impl ExportOptions {
    /// Weights in their own type, in one file.
    pub fn new(tokens: Tokens) -> Self {
        Self { dtype: None, shard: usize::MAX, tokens, tower: None, image_aspect_ratio: None }
    }
}

/// What a configuration file says beyond the architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tokens {
    /// Stands for visual tokens in transformers' prompts; no text may contain it.
    pub image: i64,
    /// Begins a sequence.
    pub bos: Option<i64>,
    /// Ends an answer.
    pub eos: i64,
    /// Fills rows.
    pub pad: i64,
}
