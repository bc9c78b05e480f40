//! The control that keeps evenly spaced tokens.

use burn::tensor::{Tensor, TensorData};
use dualspeed_ops::Backend;

use super::{Kept, PruneContext, PruneError, Pruner, PrunerSpec, Scope, VisualTokens};

/// Token `floor((i + 1/2) n / keep)` for `i = 0..keep`: evenly spaced in raster order.
#[derive(Clone, Copy, Debug, Default)]
pub struct UniformPruner {
    /// What one decision spans.
    pub scope: Scope,
}

impl UniformPruner {
    /// From a specification; no options.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&[])?;
        Ok(Self { scope: spec.scope })
    }
}

impl<B: Backend> Pruner<B> for UniformPruner {
    fn name(&self) -> &str {
        "uniform"
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
        let (images, n) = (visual.num_images(), visual.num_tokens());
        let row = (0..keep).map(|i| ((2 * i + 1) * n / (2 * keep)) as i64);
        let picks: Vec<i64> = (0..images).flat_map(|_| row.clone()).collect();
        let picks = TensorData::new(picks, [images, keep]);
        Ok(Kept::Select(Tensor::from_data(picks, &visual.projected.device())))
    }
}
