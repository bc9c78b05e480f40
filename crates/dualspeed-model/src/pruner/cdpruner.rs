//! CDPruner: a diverse subset, conditioned on the question.

use burn::tensor::Tensor;
use dualspeed_ops::Backend;

use super::rows::{feature, required, unit};
use super::{Compat, Kept, PruneContext, PruneError, Pruner, PrunerSpec, Scope, VisualTokens};
use crate::vision::features::{Needs, PATCH_TEXT, TEXT};

/// Greedy MAP of a determinantal point process with kernel `L_ij = r_i cos(x_i, x_j) r_j`: `x` the
/// projected tokens, `r` each patch's relevance to the question, min-max normalised.
///
/// Source: Zhang et al., CDPruner, arXiv 2506.10967 (written from the description). Reads: projected
/// tokens, patches and question in the text space (the first human turn). Cost: `T` kernel rows of
/// `n d` multiplications and a Cholesky row of `n T` each; no `n x n` product on the CPU.
///
/// The relevance is `mean_m cos(e_i, t_m)` over the question's vectors, negated where the tower's text
/// space is inverted (CLIP's is; see [`TextFeatures::inverted`](crate::TextFeatures)).
///
/// Departures: min and max are taken per image; `compat = "official"` takes them over the whole batch
/// as the published code does, so that picks depend on what else is in the batch. Past the rank of
/// the kernel (what a token adds is below 1e-6 of its own entry: rounding error), where the published code takes
/// roots of negative numbers and repeats picks, the rest follows in index order.
#[derive(Clone, Copy, Debug, Default)]
pub struct CdPruner {
    /// Whether relevance is normalised over the whole batch.
    pub compat: Compat,
    /// What one decision spans.
    pub scope: Scope,
}

impl CdPruner {
    /// From a specification; no options.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&[])?;
        Ok(Self { compat: spec.compat, scope: spec.scope })
    }

    /// `(r - min + 1e-6) / (max - min + 1e-6)`, in (0, 1].
    fn normalise<B: Backend>(&self, relevance: Tensor<B, 2>) -> Tensor<B, 2> {
        let shape = relevance.dims();
        let flat = match self.compat {
            Compat::Sane => relevance,
            Compat::Official => relevance.reshape([1, shape[0] * shape[1]]),
        };
        let (min, max) = (flat.clone().min_dim(1), flat.clone().max_dim(1));
        let span = (max - min.clone()).add_scalar(1e-6);
        ((flat - min).add_scalar(1e-6) / span).reshape(shape)
    }
}

impl<B: Backend> Pruner<B> for CdPruner {
    fn name(&self) -> &str {
        "cdpruner"
    }

    fn needs(&self) -> Needs {
        Needs::of([PATCH_TEXT, TEXT])
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
        let text = required(&visual.text, "cdpruner", TEXT)?;
        let patches = feature(visual, "cdpruner", PATCH_TEXT)?;
        let relevance = self.normalise(text.relevance(patches)); // [images, n]
        let features = unit(visual.projected.clone()) * relevance.unsqueeze_dim(2);
        Ok(Kept::Select(dualspeed_ops::greedy_map(features, keep)))
    }
}
