//! Indices on the device.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

/// `0..n` in every row, `[images, n]`.
pub(super) fn row_indices<B: Backend>(
    images: usize,
    n: usize,
    device: &B::Device,
) -> Tensor<B, 2, Int> {
    let row: Vec<i64> = (0..images).flat_map(|_| 0..n as i64).collect();
    Tensor::from_data(TensorData::new(row, [images, n]), device)
}

/// Host indices on the device.
pub(super) fn indices<B: Backend>(ids: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let ids: Vec<i64> = ids.iter().map(|id| *id as i64).collect();
    let count = ids.len();
    Tensor::from_data(TensorData::new(ids, [count]), device)
}
