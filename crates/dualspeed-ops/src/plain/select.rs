//! Picking rows, backwards.

use burn::tensor::TensorMetadata;
use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Shape, Tensor};

use super::primitive;

/// Default body of [`Backend::fused_select_rows_backward`](crate::Backend::fused_select_rows_backward).
pub fn select_rows_backward<B: Backend>(
    ids: IntTensor<B>,
    n: usize,
    grad: FloatTensor<B>,
) -> FloatTensor<B> {
    let shape = Shape::new([n, grad.shape()[1]]);
    let zeros = Tensor::<B, 2>::zeros(shape, (&B::float_device(&grad), grad.dtype()));
    B::float_select_add(primitive(zeros), 0, ids, grad)
}
