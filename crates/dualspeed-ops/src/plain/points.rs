//! Max-min diverse selection.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor};

use super::{cast, tensor};

/// Shorter rows count as zeros.
pub(crate) const MIN_NORM: f32 = 1e-12;
/// Farther than any cosine distance.
pub(crate) const FAR: f32 = 4.0;
/// Nearer than any cosine distance: what marks a picked row.
pub(crate) const PICKED: f32 = -1.0;

/// Default body of [`Backend::fused_farthest_points`](crate::Backend::fused_farthest_points).
pub fn farthest_points<B: Backend>(features: FloatTensor<B>, keep: usize) -> IntTensor<B> {
    let features = cast(tensor::<B, 3>(features), DType::F32);
    let ([b, n, _], device) = (features.dims(), features.device());
    if keep == 0 || n == 0 || b == 0 {
        return Tensor::<B, 2, Int>::zeros([b, 0], &device).into_primitive();
    }
    let norm = (features.clone() * features.clone()).sum_dim(2).sqrt();
    let unit = features / norm.clamp_min(MIN_NORM);
    let cosine = unit.clone().matmul(unit.swap_dims(1, 2)); // [b, n, n]
    let distance = cosine.neg().add_scalar(1.0);
    let distance = distance.clone().mask_fill(distance.is_nan(), 0.0);
    let row = Tensor::<B, 1, Int>::arange(0..n as i64, &device);
    let own = row.clone().reshape([1, n, 1]).expand([b, n, n]);
    let own = own.equal(row.reshape([1, 1, n]).expand([b, n, n]));

    let isolation = distance.clone().mask_fill(own.clone(), FAR).min_dim(2).reshape([b, n]);
    let distance = distance.mask_fill(own, PICKED);
    let mut pick = first_argmax(isolation);
    let mut picks = vec![pick.clone()];
    let mut nearest = Tensor::<B, 2>::full([b, n], FAR, (&device, DType::F32));
    while picks.len() < keep {
        let index = pick.clone().reshape([b, 1, 1]).expand([b, 1, n]);
        nearest = nearest.min_pair(distance.clone().gather(1, index).reshape([b, n]));
        pick = first_argmax(nearest.clone());
        picks.push(pick.clone());
    }
    Tensor::cat(picks, 1).into_primitive()
}

/// Lowest index of the largest entry per row, `[b, n]` -> `[b, 1]`; a backend's own arg max may break ties otherwise.
pub(super) fn first_argmax<B: Backend>(x: Tensor<B, 2>) -> Tensor<B, 2, Int> {
    let [b, n] = x.dims();
    let largest = x.clone().max_dim(1).expand([b, n]);
    let index = Tensor::<B, 1, Int>::arange(0..n as i64, &x.device()).reshape([1, n]);
    let index = index.expand([b, n]).mask_fill(x.lower(largest), n as i64 - 1);
    index.min_dim(1)
}
