//! FasterVLM: what the class token looks at.

use dualspeed_ops::Backend;

use super::rows::attention;
use super::topk::top_indices;
use super::{Kept, PruneContext, PruneError, Pruner, PrunerSpec, Scope, VisualTokens};
use crate::vision::features::{CLS_ATTENTION, Needs};

/// The tokens with the most attention from the class token, averaged over heads.
///
/// Source: Zhang et al., FasterVLM, arXiv 2412.01818 (written from the description). Reads: class
/// attention. Cost: ranks of `n` numbers.
///
/// Departures: none but the tie rule (lowest index); `compat` switches nothing. At image scope
/// attention of different tiles is compared as it is: each tile's sums to about one.
#[derive(Clone, Copy, Debug, Default)]
pub struct FasterVlm {
    /// What one decision spans.
    pub scope: Scope,
}

impl FasterVlm {
    /// From a specification; no options.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&[])?;
        Ok(Self { scope: spec.scope })
    }
}

impl<B: Backend> Pruner<B> for FasterVlm {
    fn name(&self) -> &str {
        "fastervlm"
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
        Ok(Kept::Select(top_indices(attention(visual, "fastervlm")?, keep)))
    }
}
