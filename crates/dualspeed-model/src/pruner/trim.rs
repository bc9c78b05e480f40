//! TRIM: what the question is about, and one token for the rest.

use burn::tensor::activation::softmax;
use burn::tensor::{Int, Tensor};
use dualspeed_ops::Backend;

use super::outliers::{outlier_counts, outlier_share};
use super::rows::{feature, marked, marks, one_hot, required};
use super::topk::top_indices;
use super::{
    Compat, Kept, PruneContext, PruneError, PruneStage, Pruner, PrunerSpec, Scope, VisualTokens,
};
use crate::vision::features::{Needs, PATCH_TEXT, TEXT};

/// The tokens most relevant to the question, and the mean of all others as one more token.
///
/// Source: Song et al., TRIM, arXiv 2409.10994 (written from the description). Reads: patches and
/// question in the text space. Before the projector. Options: `adaptive` (false): as many tokens as
/// the softmax of the relevances has outliers (above `Q3 + 1.5 IQR`) instead of `keep`, which takes one
/// read. Cost: one product of the patches with the question's vectors. Selected tokens come in
/// raster order, the mean last; it counts as one of `keep`.
///
/// Departures: cosines instead of plain products, in both variants, because towers give unit vectors (for a fixed
/// count the softmax changes nothing); the sign follows the tower's text space, as in [`CdPruner`](super::CdPruner).
/// `adaptive` counts each image's outliers; `compat = "official"` keeps `int(share * n)` tokens of every image, `share`
/// that of outliers among all scores of the batch, so that the count depends on what else is in the batch. Without an
/// outlier, on which the published code fails, one token is selected.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trim {
    /// Whether the count follows the data.
    pub adaptive: bool,
    /// Whether outliers are counted over the whole batch.
    pub compat: Compat,
    /// What one decision spans.
    pub scope: Scope,
}

impl Trim {
    /// From a specification; option `adaptive`.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&["adaptive"])?;
        let adaptive = spec.flag("adaptive", false)?;
        Ok(Self { adaptive, compat: spec.compat, scope: spec.scope })
    }
}

/// Weights of the selected tokens and of the mean of the others: `[b, k] -> [b, k + 1, n]`.
fn weights<B: Backend>(selected: Tensor<B, 2, Int>, n: usize) -> Tensor<B, 3> {
    let k = selected.dims()[1];
    let rest = marks::<B>(selected.clone(), n).neg().add_scalar(1.0).div_scalar((n - k) as f64);
    Tensor::cat(vec![one_hot::<B>(selected, n), rest.unsqueeze_dim(1)], 1)
}

impl<B: Backend> Pruner<B> for Trim {
    fn name(&self) -> &str {
        "trim"
    }

    fn needs(&self) -> Needs {
        Needs::of([PATCH_TEXT, TEXT])
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
        let text = required(&visual.text, "trim", TEXT)?;
        let patches = feature(visual, "trim", PATCH_TEXT)?;
        let relevance = text.relevance(patches); // [b, n]
        let ([b, n], device) = (relevance.dims(), relevance.device());
        let select = |relevance: Tensor<B, 2>, count: usize| {
            marked(marks::<B>(top_indices(relevance, count), n), count)
        };
        if !self.adaptive {
            if keep == 1 {
                let share = 1.0 / n as f64;
                return Ok(Kept::Merge(Tensor::full(
                    [b, 1, n],
                    share,
                    (&device, relevance.dtype()),
                )));
            }
            return Ok(Kept::Merge(weights(select(relevance, keep - 1), n)));
        }
        let scores = softmax(relevance.clone(), 1);
        let counts = match self.compat {
            Compat::Sane => outlier_counts(scores),
            Compat::Official => {
                let count = (n as f64 * outlier_share(scores)) as usize;
                vec![count.clamp(1, n.saturating_sub(1).max(1)); b]
            }
        };
        let most = counts.iter().copied().max().unwrap_or(0) + 1;
        let rows = counts.iter().enumerate().map(|(image, count)| {
            let row = weights(select(relevance.clone().narrow(0, image, 1), *count), n);
            let missing = most - row.dims()[1];
            let zeros = Tensor::zeros([1, missing, n], (&device, row.dtype()));
            if missing == 0 { row } else { Tensor::cat(vec![row, zeros], 1) }
        });
        let weights = Tensor::cat(rows.collect(), 0);
        Ok(Kept::Ragged { weights, lengths: counts.iter().map(|count| count + 1).collect() })
    }
}
