//! Checkpoints: one directory per step, complete or absent, and every byte of it checked when it is read.
//!
//! `checkpoints/step-00000100/` holds `trainable.safetensors` (the trainable parameters by path, in
//! f32, and both moments of AdamW), `state.json` (step, config, totals of the metrics) and
//! `checksums.json` (SHA-256 of the state and of every tensor). It is written under a temporary name,
//! synced and renamed, so a crash or a full disk leaves the checkpoints that were there. The position
//! of the sampler, the modes and the dropout masks are functions of (seed, step): the step is all that
//! needs storing.
//!
//! A checkpoint that is damaged is named in a warning, and the newest whole one before it is used.

mod checksums;
mod files;
mod folder;
mod state;
mod tensor;
#[cfg(test)]
mod tests;

pub(crate) use checksums::MODEL_PREFIX;
pub use files::{Contents, load};
pub use folder::{Checkpoints, Loaded, check_format, model_digest, run_and_step};
pub use state::CheckpointState;
pub use tensor::HostTensor;

/// Raised when the layout changes: a checkpoint of another format is refused by that number.
const FORMAT: u32 = 3;
const TENSORS: &str = "trainable.safetensors";
const STATE: &str = "state.json";
const CHECKSUMS: &str = "checksums.json";
