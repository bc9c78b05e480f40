//! Row arithmetic that several pruners share.

use burn::tensor::{DType, IndexingUpdateOp, Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::indices::row_indices;
use super::{PruneError, VisualTokens, top_indices};
use crate::vision::features::CLS_ATTENTION;

/// A feature of the vision tower by name, which the base has checked to be there.
pub(super) fn feature<B: Backend>(
    visual: &VisualTokens<B>,
    pruner: &str,
    name: &str,
) -> Result<Tensor<B, 3>, PruneError> {
    required(&visual.features.get(name), pruner, name)
}

/// Something that the base has checked to be there.
pub(super) fn required<T: Clone>(
    what: &Option<T>,
    pruner: &str,
    name: &str,
) -> Result<T, PruneError> {
    let (pruner, feature) = (pruner.to_owned(), name.to_owned());
    what.clone().ok_or(PruneError::MissingFeature { pruner, feature })
}

/// The class token's attention, averaged over heads, `[b, n]`.
pub(super) fn attention<B: Backend>(
    visual: &VisualTokens<B>,
    pruner: &str,
) -> Result<Tensor<B, 2>, PruneError> {
    let attention = feature(visual, pruner, CLS_ATTENTION)?;
    let [images, n, _] = attention.dims();
    Ok(attention.mean_dim(2).reshape([images, n]))
}

/// Scales the last dimension to unit length; zeros stay zeros.
pub(super) fn unit<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let norm = (x.clone() * x.clone()).sum_dim(2).sqrt().clamp_min(1e-12);
    x / norm
}

/// Cosines of all pairs of rows, `[b, n, d] -> [b, n, n]`.
pub(super) fn cosines<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3> {
    let unit = unit(x);
    unit.clone().matmul(unit.swap_dims(1, 2))
}

/// Rows of `x` by index, `[b, n, d], [b, k] -> [b, k, d]`.
pub(super) fn take<B: Backend>(x: Tensor<B, 3>, indices: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    let ([b, k], d) = (indices.dims(), x.dims()[2]);
    x.gather(1, indices.unsqueeze_dim::<3>(2).expand([b, k, d]))
}

/// Host values in every row, `[b, values]`.
pub(super) fn constant<B: Backend>(
    b: usize,
    values: &[usize],
    device: &B::Device,
) -> Tensor<B, 2, Int> {
    let row: Vec<i64> = values.iter().map(|value| *value as i64).collect();
    let k = row.len();
    Tensor::from_data(TensorData::new(row.repeat(b), [b, k]), device)
}

/// `[b, k] -> [b, k, n]` with a one at each index.
pub(super) fn one_hot<B: Backend>(indices: Tensor<B, 2, Int>, n: usize) -> Tensor<B, 3> {
    let [b, k] = indices.dims();
    let (device, dtype) = (indices.device(), DType::F32);
    let zeros = Tensor::<B, 3>::zeros([b, k, n], (&device, dtype));
    let ones = Tensor::<B, 3>::ones([b, k, 1], (&device, dtype));
    zeros.scatter(2, indices.unsqueeze_dim(2), ones, IndexingUpdateOp::Add)
}

/// 1 at the indices of each row, else 0: `[b, k] -> [b, n]`, f32.
pub(super) fn marks<B: Backend>(indices: Tensor<B, 2, Int>, n: usize) -> Tensor<B, 2> {
    let [b, k] = indices.dims();
    let dtype = DType::F32;
    let device = indices.device();
    let zeros = Tensor::<B, 2>::zeros([b, n], (&device, dtype));
    let ones = Tensor::<B, 2>::ones([b, k], (&device, dtype));
    zeros.scatter(1, indices, ones, IndexingUpdateOp::Add)
}

/// The `count` indices of each row whose mark is 1, ascending: `[b, n] -> [b, count]`.
pub(super) fn marked<B: Backend>(marks: Tensor<B, 2>, count: usize) -> Tensor<B, 2, Int> {
    let [b, n] = marks.dims();
    let index = row_indices::<B>(b, n, &marks.device()).float().cast(marks.dtype());
    // Marked ones first, and among them the lowest index.
    top_indices(marks.mul_scalar(2.0 * n as f64) - index, count)
}

/// The indices that are not among those of each row, ascending: `[b, k] -> [b, n - k]`.
pub(super) fn others<B: Backend>(indices: Tensor<B, 2, Int>, n: usize) -> Tensor<B, 2, Int> {
    let [b, k] = indices.dims();
    let count = n - k;
    if k == 0 {
        return row_indices::<B>(b, n, &indices.device());
    }
    marked(marks(indices, n).neg().add_scalar(1.0), count)
}

/// Lowest index of the largest entry along the last dimension: `[b, k, m] -> [b, k, 1]`.
pub(super) fn first_argmax<B: Backend>(x: Tensor<B, 3>) -> Tensor<B, 3, Int> {
    let [b, k, m] = x.dims();
    let largest = x.clone().max_dim(2).expand([b, k, m]);
    let index = Tensor::<B, 1, Int>::arange(0..m as i64, &x.device()).reshape([1, 1, m]);
    let index = index.expand([b, k, m]).mask_fill(x.lower(largest), m as i64 - 1);
    index.min_dim(2)
}

/// Picks of all images from attention `[b, n]` and hidden states `[b, n, d]`, as many images at once as
/// `n x n` matrices of them fit into a modest amount of memory.
pub(super) fn in_parts<B: Backend>(
    attention: Tensor<B, 2>,
    hidden: Tensor<B, 3>,
    picks: impl Fn(Tensor<B, 2>, Tensor<B, 3>) -> Tensor<B, 2, Int>,
) -> Tensor<B, 2, Int> {
    const ENTRIES: usize = 1 << 25;
    let [b, n] = attention.dims();
    let rows = (ENTRIES / (n * n).max(1)).max(1);
    let parts = (0..b).step_by(rows).map(|start| {
        let count = rows.min(b - start);
        picks(attention.clone().narrow(0, start, count), hidden.clone().narrow(0, start, count))
    });
    Tensor::cat(parts.collect(), 0)
}
