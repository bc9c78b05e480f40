//! VisPruner: half by attention, half by removing near-duplicates from the rest.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::rows::{attention, cosines, in_parts, marks};
use super::topk::{ranks, top_indices};
use super::{Compat, Kept, PruneContext, PruneError, Pruner, PrunerSpec, Scope, VisualTokens};
use crate::vision::features::{CLS_ATTENTION, Needs};

/// A share of the tokens by class attention; the others in the order of attention are thinned out:
/// pair even with odd positions, drop the `min(8, excess)` evens that are most similar (cosine of
/// hidden states) to any odd, repeat until the quota is reached.
///
/// Source: Zhang et al., VisPruner, arXiv 2412.01818v2 (written from the description). Reads: class
/// attention, hidden states. Options: `important`, the share kept by attention (0.5). Cost: one
/// `n x n` product per image and `(n - T) / 8` rounds over a shrinking quarter of it.
///
/// Departures: what is left after a round stays in the order of attention; `compat = "official"` puts
/// the surviving evens first, by falling similarity, then the odds, as published. Odd counts, on
/// which the published code fails, leave the last even without a partner in its pair.
///
/// The official order is chaotic under rounding: hundreds of rounds each hang on the order of close cosines, so that at
/// 576 tokens the published code does not agree with itself once the dimensions of its input are permuted (0 of 24
/// random images). Equal picks are no test of it there.
#[derive(Clone, Copy, Debug)]
pub struct VisPruner {
    /// Share of the kept tokens that is chosen by attention.
    pub important: f64,
    /// The order of the rest between rounds.
    pub compat: Compat,
    /// What one decision spans.
    pub scope: Scope,
}

/// Tokens dropped per round.
const PER_ROUND: usize = 8;

impl VisPruner {
    /// From a specification; option `important`.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&["important"])?;
        let important = spec.share("important", 0.5)?;
        Ok(Self { important, compat: spec.compat, scope: spec.scope })
    }

    /// One round on `rest` `[b, r]`: `remove` fewer. `similarity` is `[b * n, n]`.
    fn thin<B: Backend>(
        &self,
        rest: Tensor<B, 2, Int>,
        similarity: &Tensor<B, 2>,
        remove: usize,
    ) -> Tensor<B, 2, Int> {
        let ([b, r], n) = (rest.dims(), similarity.dims()[1]);
        let device = rest.device();
        let (evens, odds) = (r.div_ceil(2), r / 2);
        let strided = |first: usize, count: usize| {
            let at: Vec<i64> = (0..count).map(|i| (first + 2 * i) as i64).collect();
            let at = Tensor::<B, 1, Int>::from_data(TensorData::new(at, [count]), &device);
            rest.clone().select(1, at)
        };
        let (even, odd) = (strided(0, evens), strided(1, odds));
        let starts: Vec<i64> = (0..b).map(|image| (image * n) as i64).collect();
        let starts = Tensor::<B, 2, Int>::from_data(TensorData::new(starts, [b, 1]), &device);
        let rows = (even.clone() + starts).reshape([b * evens]);
        let rows = similarity.clone().select(0, rows).reshape([b, evens, n]);
        // Whole rows with all but the odds out of reach: faster than picking their entries.
        let apart = marks::<B>(odd.clone(), n).sub_scalar(1.0).mul_scalar(4.0); // [b, n]
        let nearest = (rows + apart.unsqueeze_dim(1)).max_dim(2).reshape([b, evens]);
        if remove == evens {
            return odd;
        }
        if self.compat == Compat::Official {
            let left = top_indices(nearest, evens).narrow(1, remove, evens - remove);
            return Tensor::cat(vec![even.gather(1, left), odd], 1);
        }
        // Positions in order, the removed ones last.
        let removed = ranks(nearest).lower_elem(remove as i64).float(); // [b, evens]
        let none = removed.clone().zeros_like();
        let removed = Tensor::stack::<3>(vec![removed, none], 2).reshape([b, 2 * evens]);
        let position = Tensor::<B, 1, Int>::arange(0..r as i64, &device).float().unsqueeze::<2>();
        let order = removed.narrow(1, 0, r).mul_scalar(r as f64) + position.expand([b, r]);
        rest.gather(1, top_indices(order.neg(), r - remove))
    }
}

impl VisPruner {
    /// `[b, n], [b, n, d] -> [b, keep]`.
    fn picks<B: Backend>(
        &self,
        attention: Tensor<B, 2>,
        hidden: Tensor<B, 3>,
        keep: usize,
    ) -> Tensor<B, 2, Int> {
        let n = attention.dims()[1];
        let order = top_indices(attention, n); // [b, n]
        let important = (keep as f64 * self.important) as usize;
        let diverse = keep - important;
        if diverse == 0 {
            return order.narrow(1, 0, keep);
        }
        let b = order.dims()[0];
        let similarity = cosines(hidden).reshape([b * n, n]);
        let mut rest = order.clone().narrow(1, important, n - important);
        while rest.dims()[1] > diverse {
            let left = rest.dims()[1];
            let remove = PER_ROUND.min(left - diverse).min(left.div_ceil(2));
            rest = self.thin(rest, &similarity, remove);
        }
        match important {
            0 => rest,
            _ => Tensor::cat(vec![order.narrow(1, 0, important), rest], 1),
        }
    }
}

impl<B: Backend> Pruner<B> for VisPruner {
    fn name(&self) -> &str {
        "vispruner"
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
        let attention = attention(visual, "vispruner")?;
        let hidden = visual.features.hidden();
        Ok(Kept::Select(in_parts(attention, hidden, |a, h| self.picks(a, h, keep))))
    }
}
