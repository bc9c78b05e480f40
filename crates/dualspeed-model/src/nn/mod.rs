//! What every part of a model is made of: layers, adapters, initial weights, freezing, walks over parameters.
//!
//! | module | concept |
//! |---|---|
//! | [`linear`], [`norm`] | layers whose field names are the checkpoints' |
//! | [`heads`] | attention heads side by side, and apart |
//! | [`lora`] | low-rank adapters and their dropout |
//! | [`init`] | initial weights as functions of (seed, path) |
//! | [`freeze`] | modules that are trained or not by a flag |
//! | [`params`] | the path of a parameter |
//! | [`param_map`], [`type_map`] | weights and code of parts from other crates |

pub mod freeze;
pub mod heads;
pub mod init;
pub mod linear;
pub mod lora;
pub mod norm;
pub mod param_map;
pub mod params;
pub mod type_map;

pub use freeze::Freezable;
pub use init::Init;
pub use linear::{Embedding, Linear};
pub use norm::{LayerNorm, RmsNorm};
pub use param_map::ParamMap;
pub use type_map::TypeMap;

use burn::tensor::{DType, FloatDType, Tensor};
use dualspeed_ops::Backend;

/// Casts a tensor; free of cost where it has that type already.
pub(crate) fn cast<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    dtype: FloatDType,
) -> Tensor<B, D> {
    if tensor.dtype() == DType::from(dtype) { tensor } else { tensor.cast(dtype) }
}

/// Scales the last dimension to unit length; zeros stay zeros.
pub(crate) fn unit_length<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let norm = (x.clone() * x.clone()).sum_dim(D - 1).clamp_min(1e-12).sqrt();
    x / norm
}
