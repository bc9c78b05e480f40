//! DivPrune: the most diverse subset.

use dualspeed_ops::Backend;

use super::{Kept, PruneContext, PruneError, Pruner, PrunerSpec, Scope, VisualTokens};

/// Max-min diversity over cosine distances `D_ij = 1 - cos(x_i, x_j)` of the projected tokens: starts
/// at the token farthest from its nearest neighbour, then again and again adds
/// `argmax_j min_{i picked} D_ij`.
///
/// Source: Alvar et al., DivPrune, arXiv 2503.02175 (written from the description). Reads: projected
/// tokens. Cost: one `n x n` product per image, then `n` comparisons per pick.
///
/// Departures: distances in f32 (published: in the model's dtype, where bf16 cosines tie and the picks
/// depend on the backend's rule), the lowest index wins ties. There is no official variant for that
/// reason; its count is `rounding = "half_even"`.
#[derive(Clone, Copy, Debug, Default)]
pub struct DivPrune {
    /// What one decision spans.
    pub scope: Scope,
}

impl DivPrune {
    /// From a specification; no options.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&[])?;
        spec.sane_only("its picks depend on how 16-bit cosines are rounded and tied")?;
        Ok(Self { scope: spec.scope })
    }
}

impl<B: Backend> Pruner<B> for DivPrune {
    fn name(&self) -> &str {
        "divprune"
    }

    fn scope(&self) -> Scope {
        self.scope
    }

    /// The operation sums products of 16-bit features in f32.
    fn wants_f32(&self) -> bool {
        false
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>,
        keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        Ok(Kept::Select(dualspeed_ops::farthest_points(visual.projected.clone(), keep)))
    }
}
