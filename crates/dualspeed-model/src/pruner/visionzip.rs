//! VisionZip: dominant tokens as they are, the rest merged into a few.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use dualspeed_ops::Backend;

use super::rows::unit;
use super::rows::{
    attention, constant, feature, first_argmax, marked, marks, one_hot, others, take,
};
use super::topk::top_indices;
use super::{
    Compat, Kept, PruneContext, PruneError, PruneStage, Pruner, PrunerSpec, Scope, VisualTokens,
};
use crate::vision::features::{CLS_ATTENTION, CLS_HIDDEN, KEYS, Needs};

/// The tokens with the most class attention, and contextual tokens: evenly spaced targets among the
/// rest, each merged with the others of the rest that are most similar to it (cosine of keys).
///
/// Source: Yang et al., VisionZip, arXiv 2412.04467 (written from the description). Reads: class
/// attention and mean-head keys of the layer whose output is used. Before the projector. Options:
/// `contextual`, the number of contextual tokens (by default 10 in 64, as published). Cost: one
/// product of the rest's keys with the targets'. Kept tokens come first in raster order, contextual
/// ones after them.
///
/// Departures: a contextual token is the mean of its target and all that were assigned to it;
/// `compat = "official"` adds the assigned tokens' mean to the target, which doubles the norm, and
/// keeps the class token as the first dominant one (it counts as one of `keep`).
#[derive(Clone, Copy, Debug, Default)]
pub struct VisionZip {
    /// Contextual tokens; by default the published share.
    pub contextual: Option<usize>,
    /// How contextual tokens are merged, and whether the class token is kept.
    pub compat: Compat,
    /// What one decision spans.
    pub scope: Scope,
}

impl VisionZip {
    /// From a specification; option `contextual`.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&["contextual"])?;
        let contextual = spec.count("contextual")?;
        Ok(Self { contextual, compat: spec.compat, scope: spec.scope })
    }

    /// Contextual tokens among `keep`: at least one token stays dominant.
    pub fn contextual_count(&self, keep: usize) -> usize {
        let published = (keep as f64 * 10.0 / 64.0).round() as usize;
        self.contextual.unwrap_or(published).min(keep - 1)
    }

    /// Weights of `count` contextual tokens made of `rest` `[b, r]`: `[b, count, n]`.
    fn contextual<B: Backend>(
        &self,
        rest: Tensor<B, 2, Int>,
        keys: Tensor<B, 3>,
        count: usize,
    ) -> Tensor<B, 3> {
        let ([b, r], n, device) = (rest.dims(), keys.dims()[1], keys.device());
        let step = (r / count).max(1);
        let targets: Vec<usize> = (0..count).map(|i| i * step).collect();
        let merged: Vec<usize> = (0..r).filter(|i| !targets.contains(i)).collect();
        let at = |places: &[usize]| rest.clone().gather(1, constant::<B>(b, places, &device));
        let target = at(&targets);
        let own = one_hot::<B>(target.clone(), n); // [b, count, n]
        if merged.is_empty() {
            return own;
        }
        let merge = at(&merged); // [b, m]
        let keys = unit(keys);
        let similarity =
            take(keys.clone(), merge.clone()).matmul(take(keys, target).swap_dims(1, 2)); // [b, m, count]
        let nearest = first_argmax(similarity).reshape([b, merged.len()]);
        let assigned = one_hot::<B>(nearest, count).swap_dims(1, 2); // [b, count, m]
        let sizes = assigned.clone().sum_dim(2); // [b, count, 1]
        let index = merge.unsqueeze_dim::<3>(1).expand([b, count, merged.len()]);
        let spread = |weights| own.zeros_like().scatter(2, index, weights, IndexingUpdateOp::Add);
        match self.compat {
            Compat::Official => spread(assigned / sizes.clamp_min(1.0)) + own,
            Compat::Sane => (spread(assigned) + own.clone()) / sizes.add_scalar(1.0),
        }
    }
}

impl<B: Backend> Pruner<B> for VisionZip {
    fn name(&self) -> &str {
        "visionzip"
    }

    fn needs(&self) -> Needs {
        match self.compat {
            Compat::Official => Needs::of([CLS_ATTENTION, KEYS, CLS_HIDDEN]),
            Compat::Sane => Needs::of([CLS_ATTENTION, KEYS]),
        }
    }

    fn stage(&self) -> PruneStage {
        PruneStage::PreProjector
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
        let attention = attention(visual, "visionzip")?;
        let ([b, n], device) = (attention.dims(), attention.device());
        let keys = feature(visual, "visionzip", KEYS)?;
        let count = self.contextual_count(keep);
        let class = usize::from(self.compat == Compat::Official);
        let dominant = keep - count - class.min(keep - count);
        let mut parts = Vec::new();
        let top = top_indices(attention, dominant);
        if dominant > 0 {
            let top = marked(marks::<B>(top.clone(), n), dominant); // ascending
            parts.push(one_hot::<B>(top, n));
        }
        if count > 0 {
            let rest = others::<B>(top, n);
            parts.push(self.contextual(rest, keys, count));
        }
        if class == 0 {
            return Ok(Kept::Merge(Tensor::cat(parts, 1)));
        }
        // The class token is the column after the patches'.
        let token = one_hot::<B>(constant::<B>(b, &[n], &device), n + 1); // [b, 1, n + 1]
        if parts.is_empty() {
            return Ok(Kept::Merge(token));
        }
        let patches = Tensor::cat(parts, 1);
        let rows = patches.dims()[1];
        let none = Tensor::zeros([b, rows, 1], (&device, patches.dtype()));
        Ok(Kept::Merge(Tensor::cat(vec![token, Tensor::cat(vec![patches, none], 2)], 1)))
    }
}
