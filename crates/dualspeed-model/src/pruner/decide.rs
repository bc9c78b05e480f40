//! What a pruner says, checked: shapes, and the order of picks.

use burn::tensor::{IndexingUpdateOp, Int, Tensor};
use dualspeed_ops::Backend;

use super::indices::row_indices;
use super::selection::Decision;
use super::{Kept, PruneContext, PruneError, PruneStage, Pruner, VisualTokens};
use crate::vision::features::CLS_HIDDEN;

/// Asks the pruner about tiles that all have the same number of tokens, and checks what it says.
pub(super) fn decide<B: Backend>(
    pruner: &dyn Pruner<B>,
    visual: &VisualTokens<B>,
    keep: usize,
    ctx: &PruneContext,
) -> Result<Decision<B>, PruneError> {
    let (tiles, n) = (visual.num_tiles(), visual.num_tokens());
    let with_class = pruner.stage() == PruneStage::PreProjector
        && pruner.needs().has(CLS_HIDDEN)
        && visual.features.get(CLS_HIDDEN).is_some();
    let shape = |found: &[usize], expected: [usize; 3]| {
        let columns = found.get(2).copied();
        let fits = columns == Some(n) || (with_class && columns == Some(n + 1));
        if fits && found[..2] == expected[..2] {
            return Ok(());
        }
        let (found, expected) = (found.to_vec(), expected.to_vec());
        Err(PruneError::Shape { pruner: pruner.name().to_owned(), found, expected })
    };
    let (weights, lengths) = match pruner.prune(&visual.for_pruner(pruner), keep, ctx)? {
        Kept::Select(picks) => {
            if picks.dims() != [tiles, keep] {
                let (found, expected) = (picks.dims().to_vec(), vec![tiles, keep]);
                let pruner = pruner.name().to_owned();
                return Err(PruneError::Shape { pruner, found, expected });
            }
            return Ok(Decision::Picks(ascending(picks, n)));
        }
        Kept::Merge(weights) => {
            shape(&weights.dims(), [tiles, keep, n])?;
            (weights, vec![keep; tiles])
        }
        Kept::Ragged { weights, lengths } => {
            let most = lengths.iter().copied().max().unwrap_or(0);
            shape(&weights.dims(), [tiles, most, n])?;
            if lengths.len() != tiles || lengths.contains(&0) {
                let pruner = pruner.name().to_owned();
                return Err(PruneError::Shape { pruner, found: lengths, expected: vec![tiles] });
            }
            (weights, lengths)
        }
    };
    Ok(Decision::Weights { weights: weights.detach(), lengths })
}

/// Sorts each row ascending by counting smaller entries: a sort that never leaves the device.
/// A repeated index makes a wrong entry, which `verify` finds.
fn ascending<B: Backend>(picks: Tensor<B, 2, Int>, n: usize) -> Tensor<B, 2, Int> {
    let [images, keep] = picks.dims();
    if keep == n {
        return row_indices(images, n, &picks.device());
    }
    let ranks = picks
        .clone()
        .unsqueeze_dim::<3>(2)
        .greater(picks.clone().unsqueeze_dim::<3>(1))
        .int()
        .sum_dim(2)
        .reshape([images, keep]); // [images, keep]
    picks.zeros_like().scatter(1, ranks, picks, IndexingUpdateOp::Add)
}
