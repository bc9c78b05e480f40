//! The heavy operations of `dualspeed`, as an extension of Burn's backend trait.
//!
//! | module | content |
//! |---|---|
//! | [`Backend`] | primitive-level operations, forward and backward, each with a body in plain Burn |
//! | [`plain`] | those bodies: the reference every fast path is tested against |
//! | [`functions`] | the same operations on [`Tensor`](burn::tensor::Tensor)s: what model code calls |
//! | [`block`] | what a decoder block as one operation takes: parameters, settings, cache, what to keep |
//! | [`mod@dropout`] | masks as functions of keys |
//! | `autodiff` | `Backend` for `Autodiff<B, C>`: hand-written backwards, one graph node per operation |
//! | `cpu` | fused bodies for ndarray and Flex on contiguous `f32` slices |
//! | `cuda` | fast bodies for CUDA: cuBLASLt and kernels of our own |
//!
//! A backend of your own joins with `impl dualspeed_ops::Backend for MyBackend {}`; whatever it does faster it
//! overrides. Statistics of norms, softmax and losses are computed in `f32` (`f64` for `f64` input), whatever the
//! dtype of the tensors.

// They panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod autodiff;
mod backend;
pub mod block;
#[cfg(any(feature = "ndarray", feature = "flex"))]
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod dropout;
pub mod functions;
#[cfg(feature = "wgpu")]
mod gpu;
pub mod plain;
mod types;

pub use backend::{AutodiffBackend, Backend};
pub use block::{
    BlockCache, BlockContext, BlockDropout, BlockLinear, BlockParams, Keep, PerTarget,
    SelectedRows, Target,
};
pub use dropout::{Dropout, DropoutKeys};
pub use functions::*;
pub use types::*;
