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

/// The file of the mode isolator beside transformers' layout, which has no place for it.
pub const ISOLATOR: &str = "mode_isolator.safetensors";
/// The file of the mode isolator in LLaVA's own layout.
pub const ISOLATOR_BIN: &str = "mode_isolator.bin";
/// The file of the projector in LLaVA's own layout, after stage 1.
pub const PROJECTOR_BIN: &str = "mm_projector.bin";
/// The file of the vision tower's projection into the space shared with text, for which LLaVA's formats have no place.
pub const PROJECTION: &str = "visual_projection.safetensors";
