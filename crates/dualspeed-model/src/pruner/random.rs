//! The control that keeps tokens at random.

use burn::tensor::{Tensor, TensorData};
use dualspeed_ops::Backend;

use super::{Kept, PruneContext, PruneError, Pruner, PrunerSpec, Scope, VisualTokens};
use dualspeed_core::rng::{SplitMix, hash_str};

/// Uniformly random tokens: a pure function of (seed, step, sample id, image index), so neither
/// the batch's composition nor earlier draws matter.
#[derive(Clone, Copy, Debug, Default)]
pub struct RandomPruner {
    /// What one decision spans.
    pub scope: Scope,
}

impl RandomPruner {
    /// From a specification; no options.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&[])?;
        Ok(Self { scope: spec.scope })
    }
}

impl<B: Backend> Pruner<B> for RandomPruner {
    fn name(&self) -> &str {
        "random"
    }

    fn scope(&self) -> Scope {
        self.scope
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>,
        keep: usize,
        ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        let n = visual.num_tokens();
        let mut picks = Vec::with_capacity(ctx.images.len() * keep);
        for (sample, index) in &ctx.images {
            let purpose = hash_str("pruner.random");
            let keys = [ctx.seed, ctx.step, hash_str(sample), *index as u64, purpose];
            let mut rng = SplitMix::new(&keys);
            let mut tokens: Vec<i64> = (0..n as i64).collect();
            for place in 0..keep {
                let other = place + rng.below(n - place);
                tokens.swap(place, other);
            }
            picks.extend_from_slice(&tokens[..keep]);
        }
        let picks = TensorData::new(picks, [ctx.images.len(), keep]);
        Ok(Kept::Select(Tensor::from_data(picks, &visual.projected.device())))
    }
}
