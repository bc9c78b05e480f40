//! Top-k with a fixed tie rule.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use dualspeed_ops::Backend;

use super::base::row_indices;

/// Indices of the `keep` largest scores of each row, largest first; of equal scores the lowest
/// index wins: `[b, n] -> [b, keep]`.
///
/// Ranks are counted instead of sorted: no backend's sort is asked to be stable, and nothing is
/// read back.
pub fn top_indices<B: Backend>(scores: Tensor<B, 2>, keep: usize) -> Tensor<B, 2, Int> {
    let [batch, n] = scores.dims();
    let index = row_indices::<B>(batch, n, &scores.device()); // [b, n]
    let other = scores.clone().unsqueeze_dim::<3>(1); // [b, 1, n]
    let this = scores.unsqueeze_dim::<3>(2); // [b, n, 1]
    let earlier = index.clone().unsqueeze_dim::<3>(1).lower(index.clone().unsqueeze_dim::<3>(2));
    let beats = other.clone().greater(this.clone()).int() + {
        let tied = other.equal(this).int();
        tied * earlier.int()
    };
    let ranks = beats.sum_dim(2).reshape([batch, n]); // [b, n]
    let ordered = index.zeros_like().scatter(1, ranks, index, IndexingUpdateOp::Add);
    ordered.narrow(1, 0, keep)
}
