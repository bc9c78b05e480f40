//! Ranks and top-k with a fixed tie rule.

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::indices::row_indices;

/// Comparisons made at once: bounds the memory of counting ranks.
const AT_ONCE: usize = 1 << 24;

/// The rank of each score in its row, 0 for the largest; of equal scores the lowest index comes
/// first, NaN comes last: `[b, n] -> [b, n]`.
///
/// On a device ranks are counted instead of sorted: no backend's sort is asked to be stable, and
/// nothing is read back. On the host, where reading is free, they are sorted.
pub fn ranks<B: Backend>(scores: Tensor<B, 2>) -> Tensor<B, 2, Int> {
    let [batch, n] = scores.dims();
    let device = scores.device();
    if B::computes_on_host() {
        let mut ranks = vec![0i64; batch * n];
        for (row, order) in order_on_host(scores).chunks(n.max(1)).enumerate() {
            for (rank, index) in order.iter().enumerate() {
                ranks[row * n + *index as usize] = rank as i64;
            }
        }
        return Tensor::from_data(TensorData::new(ranks, [batch, n]), &device);
    }
    count_ranks(scores)
}

/// [`ranks`] by comparing every pair.
fn count_ranks<B: Backend>(scores: Tensor<B, 2>) -> Tensor<B, 2, Int> {
    let [batch, n] = scores.dims();
    let device = scores.device();
    let scores = scores.clone().mask_fill(scores.is_nan(), f32::MIN);
    let rows = (AT_ONCE / (n * n).max(1)).max(1);
    let parts = (0..batch).step_by(rows).map(|start| {
        let count = rows.min(batch - start);
        let scores = scores.clone().narrow(0, start, count);
        let index = row_indices::<B>(count, n, &device);
        let other = scores.clone().unsqueeze_dim::<3>(1); // [count, 1, n]
        let this = scores.unsqueeze_dim::<3>(2); // [count, n, 1]
        let earlier = index.clone().unsqueeze_dim::<3>(1).lower(index.unsqueeze_dim::<3>(2));
        let tied = other.clone().equal(this.clone()).int() * earlier.int();
        (other.greater(this).int() + tied).sum_dim(2).reshape([count, n])
    });
    Tensor::cat(parts.collect(), 0)
}

/// Indices of the `keep` largest scores of each row, largest first; ties as in [`ranks`]:
/// `[b, n] -> [b, keep]`.
pub fn top_indices<B: Backend>(scores: Tensor<B, 2>, keep: usize) -> Tensor<B, 2, Int> {
    let [batch, n] = scores.dims();
    let device = scores.device();
    if keep == 0 {
        return Tensor::zeros([batch, 0], &device);
    }
    if B::computes_on_host() {
        let order = order_on_host(scores);
        let top: Vec<i64> =
            order.chunks(n.max(1)).flat_map(|row| row[..keep].iter().copied()).collect();
        return Tensor::from_data(TensorData::new(top, [batch, keep]), &device);
    }
    order_by_rank(count_ranks(scores)).narrow(1, 0, keep)
}

/// The index of each rank, `[b, n]`.
fn order_by_rank<B: Backend>(ranks: Tensor<B, 2, Int>) -> Tensor<B, 2, Int> {
    let [batch, n] = ranks.dims();
    let index = row_indices::<B>(batch, n, &ranks.device());
    index.zeros_like().scatter(1, ranks, index, IndexingUpdateOp::Add)
}

/// Indices of each row's scores, largest first.
fn order_on_host<B: Backend>(scores: Tensor<B, 2>) -> Vec<i64> {
    let n = scores.dims()[1].max(1);
    let scores: Vec<f32> = scores.into_data().iter::<f32>().collect();
    let mut order = Vec::with_capacity(scores.len());
    for row in scores.chunks(n) {
        let key = |i: &i64| {
            let score = row[*i as usize];
            // -0 and 0 are equal scores.
            if score.is_nan() { f32::MIN } else { score + 0.0 }
        };
        let mut indices: Vec<i64> = (0..row.len() as i64).collect();
        indices.sort_by(|a, b| key(b).total_cmp(&key(a)));
        order.extend(indices);
    }
    order
}

#[cfg(all(test, feature = "ndarray"))]
mod tests {
    use super::*;
    use dualspeed_core::rng::SplitMix;

    type Nd = burn_ndarray::NdArray<f32>;

    fn ints(x: Tensor<Nd, 2, Int>) -> Vec<i64> {
        x.into_data().iter::<i64>().collect()
    }

    /// What devices do and what the host does are the same, also with ties, NaN and infinities.
    #[test]
    fn counted_ranks_are_sorted_ranks() {
        let mut rng = SplitMix::new(&[5]);
        let odd = [f32::NAN, f32::INFINITY, -0.0, 0.0];
        for n in [1, 2, 33] {
            let row = |_| match rng.below(3) {
                0 => odd[rng.below(4)],
                1 => rng.below(4) as f32,
                _ => rng.normal() as f32,
            };
            let scores: Vec<f32> = (0..4 * n).map(row).collect();
            let scores = TensorData::new(scores, [4, n]);
            let scores = Tensor::<Nd, 2>::from_data(scores, &Default::default());
            let counted = count_ranks(scores.clone());
            assert_eq!(ints(counted.clone()), ints(ranks(scores.clone())));
            assert_eq!(ints(order_by_rank(counted)), ints(top_indices(scores, n)));
        }
    }
}
