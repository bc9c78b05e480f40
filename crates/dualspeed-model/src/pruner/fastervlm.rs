//! FasterVLM: what the class token looks at.

use dualspeed_ops::Backend;

use super::topk::top_indices;
use super::{Kept, PruneContext, PruneError, Pruner, VisualTokens};
use crate::vision::Needs;

/// The tokens with the most attention from the class token, averaged over heads.
///
/// Source: Zhang et al., FasterVLM, arXiv 2412.01818 (written from the description).
#[derive(Clone, Copy, Debug, Default)]
pub struct FasterVlm;

impl<B: Backend> Pruner<B> for FasterVlm {
    fn name(&self) -> &str {
        "fastervlm"
    }

    fn needs(&self) -> Needs {
        Needs { cls_attention: true, ..Needs::default() }
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>,
        keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        let attention = visual.features.cls_attention.clone().ok_or_else(|| {
            let pruner = Pruner::<B>::name(self).to_owned();
            PruneError::MissingFeature { pruner, feature: "cls_attention" }
        })?;
        let [images, _, n] = attention.dims();
        let scores = attention.mean_dim(1).reshape([images, n]); // [images, n]
        Ok(Kept::Select(top_indices(scores, keep)))
    }
}
