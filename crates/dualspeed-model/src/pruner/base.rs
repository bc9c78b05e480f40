//! The base of all pruners: what they are given, what they must not do, and what is an error.

use burn::tensor::{FloatDType, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::decide::decide;
use super::rows::marks;
use super::selection::{Decision, Part};
use super::tiles::{keep_all, select_tiles};
use super::{Kept, PruneContext, PruneError, PruneStage, Pruner, Selection, Tiles, VisualTokens};
use crate::vision::features::{Needs, QUESTION, TEXT};

/// Runs a pruner: checks the request, takes out padding, hands over f32 features without gradient, and sorts the picks
/// ascending. Nothing is gathered yet: [`Selection`] does that to whatever is wanted.
///
/// `keep` is a number of tokens per tile (an image is one tile unless it is [tiled](VisualTokens::tiles)). A tile with padding
/// keeps a share of it that is rounded down, at least one; a pruner of [image scope](super::Scope::Image) chooses as many as
/// all tiles of an image together would keep.
///
/// Nothing is read back from the device, but for the check that features are numbers when
/// [`PruneContext::verify`] is on (and by pruners that say so). [`Selection::verify`] checks picks.
///
/// # Errors
/// [`PruneError`] if the request makes no sense, a needed feature is missing, or the decision has
/// the wrong shape.
pub fn select<B: Backend>(
    pruner: &dyn Pruner<B>,
    visual: &VisualTokens<B>,
    keep: usize,
    ctx: &PruneContext,
) -> Result<Selection<B>, PruneError> {
    check_request(pruner, visual, keep, ctx)?;
    if ctx.verify {
        check_finite(pruner, visual, ctx)?;
    }
    let (count, n) = (visual.num_tiles(), visual.num_tokens());
    let all = || keep_all(visual.tiles.as_ref(), count, n);
    if let Some(layer_drop) = pruner.layer_drop(keep) {
        return Ok(Selection { layer_drop: Some(layer_drop), ..all()? });
    }
    if pruner.keeps_all() {
        return all();
    }
    if let Some(tiles) = &visual.tiles {
        return select_tiles(pruner, visual, tiles, keep, ctx);
    }
    let decision = decide(pruner, visual, keep, ctx)?;
    let lengths = match &decision {
        Decision::Weights { lengths, .. } => lengths.clone(),
        _ => vec![keep; count],
    };
    Ok(Selection {
        parts: vec![Part { tokens: None, decision }],
        order: None,
        lengths,
        tiles_per_image: vec![1; count],
        stage: pruner.stage(),
        layer_drop: None,
    })
}

/// Every token of every image that shows the picture.
///
/// # Errors
/// [`PruneError::Tiles`] if tiles and masks do not fit `count` tiles of `n` tokens.
pub fn select_all<B: Backend>(
    tiles: Option<&Tiles>,
    count: usize,
    n: usize,
) -> Result<Selection<B>, PruneError> {
    keep_all(tiles, count, n)
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
    let tokens = visual.num_tokens();
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
        tiles.check(visual.num_tiles(), tokens)?;
    }
    let images = visual.num_images();
    let named = ctx.images.len();
    if named != images || !(ctx.prompts.is_empty() || ctx.prompts.len() == images) {
        return Err(PruneError::Context { pruner: name(), named, images });
    }
    // A projector that changes the count leaves features that no token of the language model has.
    let (features, needs) = (visual.features.num_tokens(), pruner.needs());
    let reads_features =
        pruner.stage() == PruneStage::PreProjector || needs.of_tower() != Needs::none();
    if features != tokens && reads_features {
        return Err(PruneError::TokenCount { pruner: name(), features, tokens });
    }
    let missing = visual
        .features
        .missing(&needs)
        .or_else(|| (needs.has(TEXT) && visual.text.is_none()).then(|| TEXT.to_owned()))
        .or_else(|| {
            (needs.has(QUESTION) && visual.question.is_none()).then(|| QUESTION.to_owned())
        });
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
    let mut named: Vec<(&str, &Tensor<B, 3>)> = visual.features.iter().collect();
    named.push(("projected", &visual.projected));
    let rows = visual.num_tiles();
    let sums: Vec<Tensor<B, 2>> = named
        .iter()
        // The magnitude's sum is finite exactly if every entry is; values near the end of the range
        // are as broken as infinite ones.
        .map(|(_, x)| (*x).clone().detach().cast(FloatDType::F32).abs().sum_dim(2).sum_dim(1))
        .map(|sum| sum.reshape([1, rows]))
        .collect();
    let sums: Vec<f32> = Tensor::cat(sums, 0).into_data().iter::<f32>().collect();
    let Some(first) = sums.iter().position(|sum| !sum.is_finite()) else { return Ok(()) };
    let row = first % rows;
    let image = visual.tiles.as_ref().map_or(row, |tiles| tiles.image_of_row()[row]);
    let (sample, image) = ctx.images[image].clone();
    let (pruner, feature) = (pruner.name().to_owned(), named[first / rows].0.to_owned());
    Err(PruneError::NotFinite { pruner, feature, sample, image })
}
