//! The operations in plain Burn: default bodies of [`Backend`](crate::Backend) and reference for every fast path.
//!
//! They work on any Burn backend, also on `Autodiff<_>`, where they are differentiated operation by operation.

mod activation;
mod adamw;
mod attention;
mod greedy_map;
mod linear;
mod losses;
mod norm;
mod points;
mod rope;
mod select;

pub use activation::*;
pub use adamw::*;
pub use attention::*;
pub use greedy_map::*;
pub use linear::*;
pub use losses::*;
pub use norm::*;
pub use points::*;
pub use rope::*;
pub use select::*;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, FloatDType, Shape, Tensor, TensorMetadata, TensorPrimitive};

fn tensor<B: Backend, const D: usize>(primitive: FloatTensor<B>) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> FloatTensor<B> {
    tensor.into_primitive().tensor()
}

/// `[.., d]` as `[rows, d]`.
fn rows<B: Backend>(x: FloatTensor<B>) -> Tensor<B, 2> {
    let shape = x.shape().to_vec();
    let (d, leading) = shape.split_last().map_or((1, &[][..]), |(d, leading)| (*d, leading));
    tensor(B::float_reshape(x, Shape::new([leading.iter().product(), d])))
}

fn reshape<B: Backend, const D: usize>(x: Tensor<B, D>, shape: Shape) -> FloatTensor<B> {
    B::float_reshape(primitive(x), shape)
}

/// `shape` with its last dimension replaced.
fn with_last(shape: &Shape, last: usize) -> Shape {
    let mut dims = shape.to_vec();
    if let Some(dim) = dims.last_mut() {
        *dim = last;
    }
    Shape::from(dims)
}

/// The dtype statistics are computed in.
fn wide_dtype(dtype: DType) -> DType {
    if dtype == DType::F64 { DType::F64 } else { DType::F32 }
}

fn cast<B: Backend, const D: usize>(x: Tensor<B, D>, dtype: DType) -> Tensor<B, D> {
    // A cast to the same dtype would copy on some backends.
    if x.dtype() == dtype { x } else { x.cast(FloatDType::from(dtype)) }
}

fn widen<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    let dtype = wide_dtype(x.dtype());
    cast(x, dtype)
}
