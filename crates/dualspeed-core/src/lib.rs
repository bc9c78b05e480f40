//! What every crate of the workspace stands on, without tensors and without a GPU.
//!
//! | module | |
//! |---|---|
//! | [`date`] | days of the calendar |
//! | [`files`] | files that are there whole or not at all |
//! | [`git_lfs`] | what git-lfs leaves in a file's place |
//! | [`hash`] | digests as text |
//! | [`options`] | options of pruners, data sources and other parts that are chosen by name |
//! | [`registry`] | makers by name, with errors that name the nearest known one |
//! | [`rng`] | random streams as pure functions of their keys (SplitMix64) |
//! | [`multiversion!`] | loops compiled for several instruction sets |
//! | [`stats`] | mean, standard deviation, median, quantile |

// They panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod date;
pub mod files;
pub mod git_lfs;
pub mod hash;
mod nearest;
pub mod options;
pub mod registry;
pub mod rng;
mod simd;
pub mod stats;

pub use nearest::nearest;
pub use options::{OptionError, OptionValue, Options};
pub use registry::{MakerError, Registry, RegistryError};
