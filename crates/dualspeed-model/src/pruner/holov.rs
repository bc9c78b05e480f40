//! HoloV: attention within ranges, budgets by the ranges' attention and variety.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::rows::{attention, cosines};
use super::topk::{ranks, top_indices};
use super::{Compat, Kept, PruneContext, PruneError, Pruner, PrunerSpec, Scope, VisualTokens};
use crate::vision::features::{CLS_ATTENTION, Needs};

/// Tokens are cut into contiguous ranges (16; the first `n mod 16` have one token more). A range
/// weighs `mean(1000 a + 0.09 v)`: `a` class attention, `v` the variance of each token's cosines to the
/// others of its range, scaled to the mean of `1000 a`. Budgets are `floor(keep * share)`, what is
/// left goes one each to the heaviest ranges; a range gives its most attended tokens.
///
/// Source: Zou et al., HoloV, arXiv 2510.02912 (written from the description). Reads: class attention,
/// projected tokens. Options: `ranges` (16). Cost: `n^2 / 16` cosines per image, ranks.
///
/// Departures: what a range's budget has beyond its size goes to the most attended tokens left
/// anywhere, so that exactly `keep` stay. The variance is that of the cosines to *other* tokens, scaled
/// once per image; `compat = "official"` counts each token's own 0 too and scales within each range,
/// which takes the variety out again (every range's second term becomes 0.09 of its first), and weighs a range of
/// one token by `mean(a)`, a thousandth of the others' scale.
#[derive(Clone, Copy, Debug)]
pub struct HoloV {
    /// Number of ranges.
    pub ranges: usize,
    /// How the variance is taken and scaled.
    pub compat: Compat,
    /// What one decision spans.
    pub scope: Scope,
}

impl HoloV {
    /// From a specification; option `ranges`.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&["ranges"])?;
        let ranges = spec.count("ranges")?.unwrap_or(16).max(1);
        Ok(Self { ranges, compat: spec.compat, scope: spec.scope })
    }

    /// First token and size of each range of `n` tokens.
    fn spans(&self, n: usize) -> Vec<(usize, usize)> {
        let ranges = self.ranges.min(n);
        let size = |range: usize| n / ranges + usize::from(range < n % ranges);
        (0..ranges)
            .scan(0, |start, range| {
                let span = (*start, size(range));
                *start += span.1;
                Some(span)
            })
            .collect()
    }

    /// Variance of each token's cosines within its range, `[b, m, d] -> [b, m]`.
    fn variance<B: Backend>(&self, tokens: Tensor<B, 3>) -> Tensor<B, 2> {
        let [b, m, _] = tokens.dims();
        if m == 1 {
            return tokens.sum_dim(2).zeros_like().reshape([b, 1]);
        }
        let device = tokens.device();
        let off: Vec<f32> = (0..m * m).map(|at| if at / m == at % m { 0.0 } else { 1.0 }).collect();
        let off = Tensor::<B, 3>::from_data(TensorData::new(off, [1, m, m]), &device);
        let others = (m - 1) as f64;
        let cosines = cosines(tokens) * off.clone();
        let mean = cosines.clone().sum_dim(2).div_scalar(others);
        let apart = cosines - mean;
        let apart = match self.compat {
            Compat::Sane => apart * off,
            Compat::Official => apart,
        };
        (apart.clone() * apart).sum_dim(2).div_scalar(others).reshape([b, m])
    }
}

impl<B: Backend> Pruner<B> for HoloV {
    fn name(&self) -> &str {
        "holov"
    }

    fn needs(&self) -> Needs {
        Needs::of([CLS_ATTENTION])
    }

    fn scope(&self) -> Scope {
        self.scope
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>,
        keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        let attention = attention(visual, "holov")?;
        let ([b, n], device) = (attention.dims(), attention.device());
        let spans = self.spans(n);
        let mut means = [Vec::new(), Vec::new()]; // of 1000 a and of v, each [b, 1] per range
        let mut within = Vec::new(); // rank of each token in its range
        for (start, size) in &spans {
            let scores = attention.clone().narrow(1, *start, *size);
            let variance = self.variance(visual.projected.clone().narrow(1, *start, *size));
            let scale = if *size == 1 && self.compat == Compat::Official { 1.0 } else { 1000.0 };
            means[0].push(scores.clone().mean_dim(1).mul_scalar(scale));
            means[1].push(variance.mean_dim(1));
            within.push(ranks(scores));
        }
        let sizes: Vec<f32> = spans.iter().map(|(_, size)| *size as f32 / n as f32).collect();
        let sizes = TensorData::new(sizes, [1, spans.len()]);
        let sizes = Tensor::<B, 2>::from_data(sizes, &device);
        let [attended, varied] = means.map(|means| Tensor::cat(means, 1)); // [b, ranges]
        let over_image = |x: &Tensor<B, 2>| (x.clone() * sizes.clone()).sum_dim(1); // [b, 1]
        let scale = match self.compat {
            Compat::Sane => over_image(&attended) / over_image(&varied).add_scalar(1e-6),
            Compat::Official => attended.clone() / varied.clone().add_scalar(1e-6),
        };
        let weights = attended + varied * scale * 0.09;
        let share = weights.clone() / weights.clone().sum_dim(1).add_scalar(1e-6);
        let floor = share.mul_scalar(keep as f64).floor();
        let left = floor.clone().sum_dim(1).neg().add_scalar(keep as f64); // [b, 1]
        let budgets = floor + ranks(weights).float().lower(left.expand([b, spans.len()])).float();
        let range_of: Vec<i64> = spans
            .iter()
            .enumerate()
            .flat_map(|(range, (_, size))| std::iter::repeat_n(range as i64, *size))
            .collect();
        let range_of = Tensor::<B, 1, Int>::from_data(TensorData::new(range_of, [n]), &device);
        let budgets = budgets.select(1, range_of); // [b, n]
        let inside = Tensor::cat(within, 1).float().lower(budgets).float();
        // First what its range has room for, then by attention.
        let order = inside.mul_scalar(2.0 * n as f64) - ranks(attention).float();
        Ok(Kept::Select(top_indices(order, keep)))
    }
}
