//! What can go wrong in this crate, as values.

use crate::config::{Dtype, ModelConfigError};
use crate::layout::LayoutError;
use crate::pruner::PruneError;

/// Errors of building, running, loading or saving a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration is invalid.
    #[error("model configuration: {0}")]
    Config(#[from] ModelConfigError),
    /// Text and images do not fit together.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A pruner failed.
    #[error(transparent)]
    Prune(#[from] PruneError),
    /// A type of numbers that the backend does not have.
    #[error(
        "the backend {backend} has no {dtype:?} on this device; set model.dtype to \"float32\" (--dtype f32), or use \
         another backend"
    )]
    Dtype {
        /// The type asked for.
        dtype: Dtype,
        /// Name of the backend.
        backend: String,
    },
    /// Pixels of another shape than the vision tower takes.
    #[error(
        "pixel_values have shape {found:?}, the vision tower takes [images, 3, {expected}, \
         {expected}]; resize the images to {expected} x {expected}"
    )]
    ImageShape {
        /// Shape of the tensor passed in.
        found: Vec<usize>,
        /// Side of the images the tower takes, in pixels.
        expected: usize,
    },
    /// Features of another shape than the vision tower makes.
    #[error(
        "vision features have shape {found:?}, expected [images, {tokens}, {hidden}]; were they \
         cached with another tower?"
    )]
    FeatureShape {
        /// Shape of the tensor passed in.
        found: Vec<usize>,
        /// Tokens per image.
        tokens: usize,
        /// Width of the features.
        hidden: usize,
    },
    /// Images of several tiles that do not fit the model.
    #[error(
        "{tiles} tiles of {tokens} tokens were passed where the images' layouts have {expected}; a model of this kind \
         needs `anyres` in its configuration, and layouts made for its patch grid"
    )]
    Tiles {
        /// Tiles passed in.
        tiles: usize,
        /// Tokens of each.
        tokens: usize,
        /// Tiles of the layouts.
        expected: usize,
    },
    /// A format that has no place for this model.
    #[error("cannot export: {problem}")]
    Export {
        /// What is in the way and what to do.
        problem: &'static str,
    },
    /// The context names another number of samples than the batch has.
    #[error("the context names {found} sample(s), the batch has {expected}")]
    SampleIds {
        /// Samples in the batch.
        expected: usize,
        /// Ids in the context.
        found: usize,
    },
    /// A pruned view was asked for without a pruner.
    #[error("View::Pruned needs a pruner; pass one, or use View::Full")]
    NoPruner,
    /// The isolator was asked for but the model has none.
    #[error("the view asks for the mode isolator but the model has none (isolator_length = 0)")]
    NoIsolator,
    /// LoRA weights were asked for but the model has none.
    #[error("LoRA weights are to be trained but the model has none; set [model.lora]")]
    NoLora,
    /// No label in the batch is supervised.
    #[error(
        "no supervised token in the batch (samples {samples:?}); every label is IGNORE_INDEX, or \
         the answers were cut off by max_length"
    )]
    NothingSupervised {
        /// Ids of the samples in the batch.
        samples: Vec<String>,
    },
    /// Two forwards of one slow step disagree about the batch.
    #[error("teacher and student disagree about the batch: {teacher} and {student} samples")]
    BatchMismatch {
        /// Samples of the teacher's forward.
        teacher: usize,
        /// Samples of the student's forward.
        student: usize,
    },
    /// An objective that cannot be computed.
    #[error("objective `{objective}`: {problem}")]
    Objective {
        /// Its name.
        objective: String,
        /// What is missing or wrong.
        problem: String,
    },
    /// Generation options that make no sense.
    #[error("generation: {field} = {value} is out of range: expected {expected}")]
    Generate {
        /// Field of `GenerateOptions`.
        field: &'static str,
        /// The value as given.
        value: String,
        /// The accepted range, in words.
        expected: &'static str,
    },
    /// Weights could not be read or do not fit the model.
    #[error("weights {what}: {message}")]
    Weights {
        /// File name, or `in memory`.
        what: String,
        /// What went wrong and with which tensors.
        message: String,
    },
}
