//! The base of all pruners: how many, in which order, with which gradient, and what is an error.

use burn::tensor::{FloatDType, IndexingUpdateOp};
use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::{AutodiffBackend, Backend};
use serde::{Deserialize, Serialize};

use super::{Kept, PruneContext, PruneError, Pruner, Stage, VisualTokens};
use crate::vision::VisionFeatures;

/// How a fractional number of kept tokens becomes a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rounding {
    /// Towards zero, as DualSpeed's published code: `int((1 - p) * n)`, 57 of 576 at p = 0.9.
    #[default]
    Trunc,
    /// To nearest, ties to even, as DivPrune's.
    HalfEven,
    /// To nearest, ties up.
    Round,
}

/// How many of `n` tokens stay at a pruning ratio; at least one, at most all.
///
/// The product is taken in f64 as Python does, so `(1 - 0.9) * 10` truncates to 0 (then raised
/// to 1) and not to 1.
pub fn keep_count(n: usize, pruning_ratio: f64, rounding: Rounding) -> usize {
    let exact = (1.0 - pruning_ratio) * n as f64;
    let count = match rounding {
        Rounding::Trunc => exact.trunc(),
        Rounding::HalfEven => exact.round_ties_even(),
        Rounding::Round => exact.round(),
    };
    (count.max(0.0) as usize).clamp(1, n.max(1))
}

/// Visual tokens after pruning.
#[derive(Clone, Debug)]
pub struct KeptTokens<B: Backend> {
    /// `[images, keep, d]`.
    pub tokens: Tensor<B, 3>,
    /// Whether `tokens` are merged hidden states that the projector has yet to see.
    pub unprojected: bool,
    /// Indices of the kept tokens, ascending, `[images, keep]`; none for merges.
    pub indices: Option<Tensor<B, 2, Int>>,
}

impl<B: Backend> KeptTokens<B> {
    /// Tokens kept per image.
    pub fn keep(&self) -> usize {
        self.tokens.dims()[1]
    }

    /// Checks that indices are unique, ascending and in range; reads them back from the device.
    ///
    /// # Errors
    /// [`PruneError::Picks`] for the first image where they are not.
    pub fn verify(&self, pruner: &str, n: usize) -> Result<(), PruneError> {
        let Some(indices) = &self.indices else { return Ok(()) };
        let keep = self.keep();
        let picks: Vec<i64> = indices.to_data().iter::<i64>().collect();
        for (image, picks) in picks.chunks(keep.max(1)).enumerate() {
            let ascending = picks.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || picks.iter().any(|pick| !(0..n as i64).contains(pick)) {
                let (pruner, picks) = (pruner.to_owned(), picks.to_vec());
                return Err(PruneError::Picks { pruner, image, picks, tokens: n });
            }
        }
        Ok(())
    }
}

impl<B: AutodiffBackend> KeptTokens<B> {
    /// The same tokens on the inner backend, for a forward without gradient.
    pub fn inner(&self) -> KeptTokens<B::InnerBackend> {
        KeptTokens {
            tokens: self.tokens.clone().inner(),
            unprojected: self.unprojected,
            indices: self.indices.clone().map(Tensor::inner),
        }
    }
}

/// Runs a pruner: checks the request, hands over f32 features without gradient, sorts the picks
/// ascending, and gathers (or merges) with gradient.
///
/// Picks are gathered from the projected tokens at either stage, because the projector works token
/// by token; a merge before the projector is left [unprojected](KeptTokens::unprojected). No value is read back from the device; [`KeptTokens::verify`] does that where wanted.
///
/// # Errors
/// [`PruneError`] if the request makes no sense, a needed feature is missing, or the decision has
/// the wrong shape.
pub fn select<B: Backend>(
    pruner: &dyn Pruner<B>,
    visual: &VisualTokens<B>,
    keep: usize,
    ctx: &PruneContext,
) -> Result<KeptTokens<B>, PruneError> {
    let (images, n) = (visual.images(), visual.tokens());
    check_request(pruner, visual, keep, ctx)?;
    let kept = pruner.prune(&in_f32(visual.detach()), keep, ctx)?;
    let shape = |found: &[usize], expected: &[usize]| {
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (found.to_vec(), expected.to_vec());
        Err(PruneError::Shape { pruner: pruner.name().to_owned(), found, expected })
    };
    match kept {
        Kept::Select(picks) => {
            shape(&picks.dims(), &[images, keep])?;
            let indices = ascending(picks, n);
            let tokens = gather(visual.projected.clone(), indices.clone());
            Ok(KeptTokens { tokens, unprojected: false, indices: Some(indices) })
        }
        Kept::Merge(weights) => {
            shape(&weights.dims(), &[images, keep, n])?;
            let unprojected = pruner.stage() == Stage::PreProjector;
            let source = if unprojected { &visual.features.hidden } else { &visual.projected };
            let weights = weights.detach().cast(source.dtype());
            Ok(KeptTokens { tokens: weights.matmul(source.clone()), unprojected, indices: None })
        }
    }
}

fn check_request<B: Backend>(
    pruner: &dyn Pruner<B>,
    visual: &VisualTokens<B>,
    keep: usize,
    ctx: &PruneContext,
) -> Result<(), PruneError> {
    let tokens = visual.tokens();
    let name = || pruner.name().to_owned();
    if keep == 0 {
        return Err(PruneError::KeepZero { pruner: name(), tokens });
    }
    if keep > tokens {
        return Err(PruneError::KeepTooMany { pruner: name(), keep, tokens });
    }
    if pruner.keeps_all() && keep < tokens {
        return Err(PruneError::CannotPrune { pruner: name(), keep, tokens });
    }
    if !pruner.keeps_all() && keep == tokens {
        return Err(PruneError::NothingPruned { pruner: name(), keep, tokens });
    }
    if ctx.images.len() != visual.images() {
        let (named, images) = (ctx.images.len(), visual.images());
        return Err(PruneError::Context { pruner: name(), named, images });
    }
    let (needs, features) = (pruner.needs(), &visual.features);
    let missing = [
        (needs.cls_attention && features.cls_attention.is_none(), "cls_attention"),
        (needs.keys && features.keys.is_none(), "keys"),
        (needs.patch_text && features.patch_text.is_none(), "patch_text"),
    ];
    match missing.iter().find(|(missing, _)| *missing) {
        Some((_, feature)) => Err(PruneError::MissingFeature { pruner: name(), feature }),
        None => Ok(()),
    }
}

/// Scores are made in f32 whatever the activations are: bf16 cosines tie.
fn in_f32<B: Backend>(visual: VisualTokens<B>) -> VisualTokens<B> {
    let cast = |x: Tensor<B, 3>| x.cast(FloatDType::F32);
    VisualTokens {
        projected: cast(visual.projected),
        features: VisionFeatures {
            hidden: cast(visual.features.hidden),
            cls_attention: visual.features.cls_attention.map(cast),
            keys: visual.features.keys.map(cast),
            patch_text: visual.features.patch_text.map(cast),
        },
    }
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

/// `0..n` in every row, `[images, n]`.
pub(super) fn row_indices<B: Backend>(
    images: usize,
    n: usize,
    device: &B::Device,
) -> Tensor<B, 2, Int> {
    let row: Vec<i64> = (0..images).flat_map(|_| 0..n as i64).collect();
    Tensor::from_data(TensorData::new(row, [images, n]), device)
}

/// `[images, n, d], [images, keep] -> [images, keep, d]`; the gradient flows to the kept rows.
fn gather<B: Backend>(source: Tensor<B, 3>, indices: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    let [images, n, d] = source.dims();
    let keep = indices.dims()[1];
    if keep == n {
        return source;
    }
    let starts: Vec<i64> = (0..images).map(|image| (image * n) as i64).collect();
    let starts =
        Tensor::<B, 2, Int>::from_data(TensorData::new(starts, [images, 1]), &source.device());
    let flat = (indices + starts).reshape([images * keep]);
    source.reshape([images * n, d]).select(0, flat).reshape([images, keep, d])
}
