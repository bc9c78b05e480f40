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

/// The number of outliers among the scores of each image `[b, n]`, at least one and at most `n - 1`.
///
/// Reads the scores back from the device: a count must be known to lay out the batch.
pub(super) fn outlier_counts<B: Backend>(scores: Tensor<B, 2>) -> Vec<usize> {
    let n = scores.dims()[1].max(1);
    let scores: Vec<f64> = scores.into_data().iter::<f64>().collect();
    let rows = scores.chunks(n).map(|row| above_fence(row.iter().copied()));
    rows.map(|count| count.clamp(1, (n - 1).max(1))).collect()
}

/// The share of outliers among all scores of a batch, `[b, n]`; 0 if there is none. Read back as in [`outlier_counts`].
pub(super) fn outlier_share<B: Backend>(scores: Tensor<B, 2>) -> f64 {
    let scores: Vec<f64> = scores.into_data().iter::<f64>().collect();
    above_fence(scores.iter().copied()) as f64 / scores.len().max(1) as f64
}
