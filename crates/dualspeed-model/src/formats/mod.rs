//! Models in files: other people's checkpoints read and written, and our own weights.
//!
//! | module | concept |
//! |---|---|
//! | [`import`] | checkpoints of transformers, LLaVA, peft, PyTorch and llama.cpp |
//! | [`export`] | the same formats, written |
//! | [`store`] | weights of one module, in and out as safetensors |

pub mod export;
pub mod import;
pub mod store;

pub use store::Precision;

/// The file of the mode isolator, for which other formats have no place.
pub const ISOLATOR: &str = "mode_isolator.safetensors";
/// The file of the vision tower's projection into the space shared with text, for which LLaVA's formats have no place.
pub const PROJECTION: &str = "visual_projection.safetensors";
