//! A control for centre bias: the tokens nearest to the middle of the picture.

use dualspeed::prelude::*;

/// Keeps the patches nearest to the centre of the grid; with `rim = true` those farthest from it.
#[derive(Debug)]
pub struct Centre {
    rim: bool,
}

impl Centre {
    /// From a specification; option `rim`.
    pub fn new(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&["rim"])?;
        Ok(Self { rim: spec.flag("rim", false)? })
    }
}

impl<B: Backend> Pruner<B> for Centre {
    fn name(&self) -> &str {
        "centre"
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>,
        keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        let (images, n) = (visual.num_tiles(), visual.num_tokens());
        let side = n.isqrt().max(1);
        let middle = (side as f32 - 1.0) / 2.0;
        let sign = if self.rim { 1.0 } else { -1.0 };
        let near = |i: usize| {
            let (y, x) = ((i / side) as f32 - middle, (i % side) as f32 - middle);
            sign * (x * x + y * y)
        };
        let row: Vec<f32> = (0..n).map(near).collect();
        let scores = Tensor::<B, 1>::from_floats(row.as_slice(), &visual.projected.device());
        let scores = scores.unsqueeze::<2>().expand([images, n]);
        Ok(Kept::Select(top_indices(scores, keep)))
    }
}
