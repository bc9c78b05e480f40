//! Greedy MAP inference of a determinantal point process.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor};

use super::points::first_argmax;
use super::{cast, tensor};

/// A residual below this share of its diagonal entry is rounding error.
pub(crate) const RANK_EPS: f32 = 1e-6;
/// Below any residual: what marks a picked row. NaN rows stand between the two.
pub(crate) const TAKEN: f32 = -2.0;
/// The residual of a row with NaN.
pub(crate) const INVALID: f32 = -1.0;

/// Default body of [`Backend::fused_greedy_map`](crate::Backend::fused_greedy_map).
pub fn greedy_map<B: Backend>(features: FloatTensor<B>, keep: usize) -> IntTensor<B> {
    let features = cast(tensor::<B, 3>(features), DType::F32);
    let ([b, n, _], device) = (features.dims(), features.device());
    if keep == 0 || n == 0 || b == 0 {
        return Tensor::<B, 2, Int>::zeros([b, 0], &device).into_primitive();
    }
    let diagonal = (features.clone() * features.clone()).sum_dim(2).reshape([b, n]);
    let broken = diagonal.clone().is_nan(); // [b, n]
    let wide = broken.clone().unsqueeze_dim::<3>(2).expand(features.shape());
    let features = features.mask_fill(wide, 0.0);
    let diagonal = diagonal.mask_fill(broken.clone(), 0.0);
    let kernel = features.clone().matmul(features.swap_dims(1, 2)); // [b, n, n]
    let floor = diagonal.clone().mul_scalar(RANK_EPS);
    let mut residual = diagonal.mask_fill(broken, INVALID);
    // Rows of the Cholesky factor, one per pick, each [b, 1, n].
    let mut factors: Vec<Tensor<B, 3>> = Vec::with_capacity(keep);
    let mut picks = Vec::with_capacity(keep);
    loop {
        let pick = first_argmax(residual.clone()); // [b, 1]
        picks.push(pick.clone());
        if picks.len() == keep {
            break;
        }
        let at = pick.clone().reshape([b, 1, 1]).expand([b, 1, n]);
        let mut row = kernel.clone().gather(1, at); // [b, 1, n]
        if !factors.is_empty() {
            let factors = Tensor::cat(factors.clone(), 1); // [b, s, n]
            let s = factors.dims()[1];
            let own = factors.clone().gather(2, pick.clone().reshape([b, 1, 1]).expand([b, s, 1]));
            row = row - own.swap_dims(1, 2).matmul(factors);
        }
        let gain = residual.clone().gather(1, pick.clone()); // [b, 1]
        let empty = gain.clone().lower_equal_elem(0.0);
        let scale = gain.mask_fill(empty.clone(), 1.0).sqrt().recip().mask_fill(empty, 0.0);
        let factor = row * scale.reshape([b, 1, 1]);
        factors.push(factor.clone());
        let factor = factor.reshape([b, n]);
        let open = residual.clone().greater_equal_elem(0.0);
        let left = residual.clone() - factor.clone() * factor;
        let left = left.clone().mask_fill(left.lower_equal(floor.clone()), 0.0);
        residual = residual.mask_where(open, left);
        let taken = Tensor::<B, 2>::full([b, 1], TAKEN, (&device, DType::F32));
        let own = Tensor::<B, 1, Int>::arange(0..n as i64, &device).reshape([1, n]);
        let own = own.expand([b, n]).equal(pick.expand([b, n]));
        residual = residual.mask_where(own, taken.expand([b, n]));
    }
    Tensor::cat(picks, 1).into_primitive()
}
