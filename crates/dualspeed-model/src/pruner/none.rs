//! The control that keeps every token.

use dualspeed_ops::Backend;

use super::indices::row_indices;
use super::{Kept, PruneContext, PruneError, Pruner, VisualTokens};

/// Keeps every token; asking it for fewer is an error.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoPruning;

impl<B: Backend> Pruner<B> for NoPruning {
    fn name(&self) -> &str {
        "none"
    }

    fn keeps_all(&self) -> bool {
        true
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>,
        keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        Ok(Kept::Select(row_indices(visual.num_images(), keep, &visual.projected.device())))
    }
}
