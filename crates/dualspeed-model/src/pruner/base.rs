//! The base of all pruners: in which order, with which gradient, and what is an error.

use burn::tensor::{FloatDType, IndexingUpdateOp};
use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::rows::marks;
use super::tiles::{keep_all, select_tiles};
use super::{Kept, KeptTokens, PruneContext, PruneError, Pruner, Stage, VisualTokens};

/// Runs a pruner: checks the request, takes out padding, hands over f32 features without gradient,
/// sorts the picks ascending, and gathers (or merges) with gradient.
///
/// Picks are gathered from the projected tokens at either stage, because the projector works token
/// by token; a merge before the projector is left [unprojected](KeptTokens::unprojected). Merging
/// weights are constants: the gradient goes through them to the tokens, not into them.
///
/// `keep` is a number of tokens per tile. A tile with padding keeps a share of it that is rounded down,
/// at least one; a pruner of [image scope](super::Scope::Image) chooses as many as all tiles of
/// an image together would keep.
///
/// Nothing is read back from the device, but for the check that features are numbers when
/// [`PruneContext::verify`] is on (and by pruners that say so). [`KeptTokens::verify`] checks picks.
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
    check_request(pruner, visual, keep, ctx)?;
    if ctx.verify {
        check_finite(pruner, visual, ctx)?;
    }
    if let Some(layer_drop) = pruner.layer_drop(keep) {
        return Ok(KeptTokens { layer_drop: Some(layer_drop), ..keep_all(visual)? });
    }
    if visual.tiles.is_some() {
        return match pruner.keeps_all() {
            true => keep_all(visual),
            false => select_tiles(pruner, visual, keep, ctx),
        };
    }
    let Decided { tokens, lengths, unprojected, indices } = decide(pruner, visual, keep, ctx)?;
    Ok(KeptTokens { tokens, lengths, unprojected, indices, layer_drop: None })
}

/// One decision for rows that all have the same number of tokens.
pub(super) struct Decided<B: Backend> {
    /// `[rows, most, d]`.
    pub tokens: Tensor<B, 3>,
    pub lengths: Vec<usize>,
    pub unprojected: bool,
    /// `[rows, most]`.
    pub indices: Option<Tensor<B, 2, Int>>,
}

/// Asks the pruner and carries out what it says.
pub(super) fn decide<B: Backend>(
    pruner: &dyn Pruner<B>,
    visual: &VisualTokens<B>,
    keep: usize,
    ctx: &PruneContext,
) -> Result<Decided<B>, PruneError> {
    let (rows, n) = (visual.rows(), visual.tokens());
    let unprojected = pruner.stage() == Stage::PreProjector;
    let class = visual.features.cls_hidden.as_ref();
    let class = class.filter(|_| unprojected && pruner.needs().cls_hidden);
    let shape = |found: &[usize], expected: [usize; 3]| {
        let columns = found.get(2).copied();
        let fits = columns == Some(n) || (class.is_some() && columns == Some(n + 1));
        if fits && found[..2] == expected[..2] {
            return Ok(());
        }
        let (found, expected) = (found.to_vec(), expected.to_vec());
        Err(PruneError::Shape { pruner: pruner.name().to_owned(), found, expected })
    };
    let (weights, lengths) = match pruner.prune(&visual.for_pruner(pruner), keep, ctx)? {
        Kept::Select(picks) => {
            if picks.dims() != [rows, keep] {
                let (found, expected) = (picks.dims().to_vec(), vec![rows, keep]);
                let pruner = pruner.name().to_owned();
                return Err(PruneError::Shape { pruner, found, expected });
            }
            let indices = ascending(picks, n);
            let tokens = gather(visual.projected.clone(), indices.clone());
            let lengths = vec![keep; rows];
            return Ok(Decided { tokens, lengths, unprojected: false, indices: Some(indices) });
        }
        Kept::Merge(weights) => {
            shape(&weights.dims(), [rows, keep, n])?;
            (weights, vec![keep; rows])
        }
        Kept::Ragged { weights, lengths } => {
            let most = lengths.iter().copied().max().unwrap_or(0);
            shape(&weights.dims(), [rows, most, n])?;
            if lengths.len() != rows || lengths.contains(&0) {
                let pruner = pruner.name().to_owned();
                return Err(PruneError::Shape { pruner, found: lengths, expected: vec![rows] });
            }
            (weights, lengths)
        }
    };
    let source = match (unprojected, class) {
        (true, Some(class)) if weights.dims()[2] == n + 1 => {
            Tensor::cat(vec![visual.features.hidden.clone(), class.clone()], 1)
        }
        (true, _) => visual.features.hidden.clone(),
        (false, _) => visual.projected.clone(),
    };
    let weights = weights.detach().cast(source.dtype());
    Ok(Decided { tokens: weights.matmul(source), lengths, unprojected, indices: None })
}

/// How much each token of a whole image goes into the kept ones, `[images, n]`: 1 for a token that is
/// kept as it is; a merged token's unit is shared out over what it is made of. For pictures.
///
/// # Errors
/// As [`select`]; tiles are an error, too.
pub fn contributions<B: Backend>(
    pruner: &dyn Pruner<B>,
    visual: &VisualTokens<B>,
    keep: usize,
    ctx: &PruneContext,
) -> Result<Tensor<B, 2>, PruneError> {
    check_request(pruner, visual, keep, ctx)?;
    if visual.tiles.is_some() {
        let problem = "contributions are of whole images".to_owned();
        return Err(PruneError::Tiles { problem });
    }
    let ([rows, n, _], device) = (visual.projected.dims(), visual.projected.device());
    let weights = match pruner.prune(&visual.for_pruner(pruner), keep, ctx)? {
        Kept::Select(picks) => return Ok(marks(picks, n)),
        Kept::Merge(weights) => weights,
        Kept::Ragged { weights, lengths } => {
            let most = weights.dims()[1];
            let there: Vec<f32> = lengths
                .iter()
                .flat_map(|length| (0..most).map(move |at| if at < *length { 1.0 } else { 0.0 }))
                .collect();
            let there = TensorData::new(there, [rows, most, 1]);
            weights * Tensor::<B, 3>::from_data(there, &device)
        }
    };
    let weights = weights.abs();
    let shares = weights.clone() / weights.sum_dim(2).clamp_min(1e-12);
    Ok(shares.narrow(2, 0, n).sum_dim(1).reshape([rows, n]))
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
    if let Some(tiles) = &visual.tiles {
        tiles.check(visual.rows(), tokens)?;
    }
    let images = visual.images();
    let named = ctx.images.len();
    if named != images || !(ctx.prompts.is_empty() || ctx.prompts.len() == images) {
        return Err(PruneError::Context { pruner: name(), named, images });
    }
    let needs = pruner.needs();
    let missing = visual
        .features
        .missing(needs)
        .or_else(|| (needs.text && visual.text.is_none()).then_some("text"))
        .or_else(|| (needs.question && visual.question.is_none()).then_some("question"));
    match missing {
        Some(feature) => Err(PruneError::MissingFeature { pruner: name(), feature }),
        None => Ok(()),
    }
}

/// Names the first image with a feature that is not a number; reads one number per image and
/// feature back.
fn check_finite<B: Backend>(
    pruner: &dyn Pruner<B>,
    visual: &VisualTokens<B>,
    ctx: &PruneContext,
) -> Result<(), PruneError> {
    let mut named = visual.features.named();
    named.push(("projected", visual.projected.clone()));
    let rows = visual.rows();
    let sums: Vec<Tensor<B, 2>> = named
        .iter()
        // The magnitude's sum is finite exactly if every entry is; values near the end of the range
        // are as broken as infinite ones.
        .map(|(_, x)| x.clone().detach().cast(FloatDType::F32).abs().sum_dim(2).sum_dim(1))
        .map(|sum| sum.reshape([1, rows]))
        .collect();
    let sums: Vec<f32> = Tensor::cat(sums, 0).into_data().iter::<f32>().collect();
    let Some(first) = sums.iter().position(|sum| !sum.is_finite()) else { return Ok(()) };
    let row = first % rows;
    let image = visual.tiles.as_ref().map_or(row, |tiles| tiles.image_of_row()[row]);
    let (sample, image) = ctx.images[image].clone();
    let (pruner, feature) = (pruner.name().to_owned(), named[first / rows].0);
    Err(PruneError::NotFinite { pruner, feature, sample, image })
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

/// `[images, n, d], [images, keep] -> [images, keep, d]` for ascending unique indices; the gradient flows
/// to the kept rows.
pub(super) fn gather<B: Backend>(source: Tensor<B, 3>, indices: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    let [images, n, d] = source.dims();
    let keep = indices.dims()[1];
    if keep == n {
        return source;
    }
    let starts: Vec<i64> = (0..images).map(|image| (image * n) as i64).collect();
    let starts =
        Tensor::<B, 2, Int>::from_data(TensorData::new(starts, [images, 1]), &source.device());
    let flat = (indices + starts).reshape([images * keep]);
    dualspeed_ops::select_rows(source.reshape([images * n, d]), flat).reshape([images, keep, d])
}
