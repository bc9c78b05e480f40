//! DivPrune: the most diverse subset.

use dualspeed_ops::Backend;

use super::{Kept, PruneContext, PruneError, Pruner, VisualTokens};

/// Max-min diversity over cosine distances of the projected tokens: starts at the token farthest
/// from its nearest neighbour, then adds the token farthest from all picked so far.
///
/// Source: Alvar et al., DivPrune, arXiv 2503.02175 (written from the description); distances in
/// f32, the lowest index wins ties.
#[derive(Clone, Copy, Debug, Default)]
pub struct DivPrune;

impl<B: Backend> Pruner<B> for DivPrune {
    fn name(&self) -> &str {
        "divprune"
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
