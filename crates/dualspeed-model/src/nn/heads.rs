//! Attention heads: side by side in the rows of a matrix, and apart.

use burn::tensor::Tensor;
use dualspeed_ops::Backend;

/// `[b * s, h * d] -> [b, h, s, d]`.
pub(crate) fn split_heads<B: Backend>(x: Tensor<B, 2>, batch: usize, heads: usize) -> Tensor<B, 4> {
    let [rows, width] = x.dims();
    x.reshape([batch, rows / batch, heads, width / heads]).swap_dims(1, 2)
}

/// `[b, h, s, d] -> [b * s, h * d]`.
pub(crate) fn merge_heads<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 2> {
    let [batch, heads, seq, d] = x.dims();
    x.swap_dims(1, 2).reshape([batch * seq, heads * d])
}
