//! PyramidDrop: fewer visual tokens the deeper the decoder.

use std::sync::Arc;

use dualspeed_ops::Backend;

use super::indices::row_indices;
use super::{
    Compat, DropPositions, DropScore, Kept, LayerDrop, PruneContext, PruneError, Pruner,
    PrunerSpec, VisualTokens,
};

/// All visual tokens enter the decoder; after a quarter, a half and three quarters of its blocks the
/// tokens that the last instruction token attends to least are dropped, in equal proportion each
/// time.
///
/// Source: Xing et al., PyramidDrop, arXiv 2410.17247 (written from the description). Reads: the
/// decoder's own attention (one query row per sample and drop). Options: `stages` (4): the decoder is
/// cut into so many parts of equal length, with a drop between them; `score` (`attention`, or `uniform`
/// as a control). Cost: one query row of attention per drop; the first blocks see every token, so that
/// it saves less than pruning before the decoder.
///
/// `keep` is the number of tokens of an image in the *last* part; with `n` at first and `k` drops each
/// keeps a share `(keep / n)^(1/k)`: at `keep = n / 8` that is the published half after each of three.
/// Works per image; the row that predicts a token stays the row before it, so that losses are the
/// same tokens' as without dropping.
///
/// Departures: tokens keep their rotary positions; `compat = "official"` renumbers them. Queries and
/// keys are those of the block after the drop, without its adapters.
#[derive(Clone, Copy, Debug)]
pub struct PyramidDrop {
    /// Parts of the decoder, 2 or more.
    pub stages: usize,
    /// What ranks the tokens.
    pub score: DropScore,
    /// Whether positions are renumbered.
    pub compat: Compat,
}

/// The schedule for one `keep`.
#[derive(Clone, Copy, Debug)]
struct Schedule {
    pruner: PyramidDrop,
    keep: usize,
}

impl PyramidDrop {
    /// From a specification; options `stages`, `score`.
    ///
    /// # Errors
    /// [`PruneError`] if the specification asks for what there is not.
    pub fn from_spec(spec: &PrunerSpec) -> Result<Self, PruneError> {
        spec.expect_options(&["stages", "score"])?;
        let stages = spec.count("stages")?.unwrap_or(4).max(2);
        let score = match spec.options.get("score") {
            None => DropScore::InstructionAttention,
            Some(value) => match value.to_string().as_str() {
                "attention" => DropScore::InstructionAttention,
                "uniform" => DropScore::Uniform,
                _ => return Err(spec.bad_option("score", value, "attention or uniform")),
            },
        };
        Ok(Self { stages, score, compat: spec.compat })
    }

    /// Blocks (counted from 1) after which tokens are dropped.
    fn drops(&self, layers: usize) -> Vec<usize> {
        let mut drops: Vec<usize> =
            (1..self.stages).map(|stage| (stage * layers / self.stages).max(1)).collect();
        drops.dedup();
        drops.retain(|block| *block < layers);
        drops
    }
}

impl LayerDrop for Schedule {
    fn keep_after(&self, layer: usize, layers: usize, visual: usize) -> Option<usize> {
        let drops = self.pruner.drops(layers);
        let done = drops.iter().position(|block| *block == layer + 1)? + 1;
        let share = (self.keep as f64 / visual.max(1) as f64).min(1.0);
        let left = visual as f64 * share.powf(done as f64 / drops.len() as f64);
        Some((left.round() as usize).max(1))
    }

    fn score(&self) -> DropScore {
        self.pruner.score
    }

    fn positions(&self) -> DropPositions {
        match self.pruner.compat {
            Compat::Sane => DropPositions::Original,
            Compat::Official => DropPositions::Renumbered,
        }
    }
}

impl<B: Backend> Pruner<B> for PyramidDrop {
    fn name(&self) -> &str {
        "pyramiddrop"
    }

    fn layer_drop(&self, keep: usize) -> Option<Arc<dyn LayerDrop>> {
        Some(Arc::new(Schedule { pruner: *self, keep }))
    }

    fn prune(
        &self,
        visual: &VisualTokens<B>,
        _keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<B>, PruneError> {
        let (rows, n) = (visual.num_tiles(), visual.num_tokens());
        Ok(Kept::Select(row_indices(rows, n, &visual.projected.device())))
    }
}
