//! Adaptive counts: how many scores lie above the upper fence of a box plot.

use burn::tensor::Tensor;
use dualspeed_ops::Backend;

/// The quantile `q` in [0, 1] of sorted values, linear between neighbours (numpy's default).
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (at.floor() as usize, at.ceil() as usize);
    sorted[low] + (sorted[high] - sorted[low]) * (at - low as f64)
}

/// How many values exceed `Q3 + 1.5 (Q3 - Q1)`; NaN counts as smallest.
fn above_fence(values: impl Iterator<Item = f64>) -> usize {
    let mut sorted: Vec<f64> =
        values.map(|value| if value.is_nan() { f64::NEG_INFINITY } else { value }).collect();
    if sorted.is_empty() {
        return 0;
    }
    sorted.sort_by(f64::total_cmp);
    let (q1, q3) = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
    sorted.iter().filter(|value| **value > q3 + 1.5 * (q3 - q1)).count()
}

/// The number of outliers among the scores of each image `[b, n]`, at least one and at most `n - 1`;
/// with `whole_batch` the share of outliers among all scores of the batch, as a count per image.
///
/// Reads the scores back from the device: a count must be known to lay out the batch.
pub(super) fn outlier_counts<B: Backend>(scores: Tensor<B, 2>, whole_batch: bool) -> Vec<usize> {
    let [b, n] = scores.dims();
    let scores: Vec<f64> = scores.into_data().iter::<f64>().collect();
    let bounded = |count: usize| count.clamp(1, n.saturating_sub(1).max(1));
    if whole_batch {
        let share = above_fence(scores.iter().copied()) as f64 / scores.len().max(1) as f64;
        return vec![bounded((n as f64 * share) as usize); b];
    }
    scores.chunks(n.max(1)).map(|row| bounded(above_fence(row.iter().copied()))).collect()
}
