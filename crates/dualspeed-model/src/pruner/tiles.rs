//! Padding and tiles: tokens that show the picture are pruned in rows of equal length, tile by tile or image by image. All counts
//! are known on the host.

use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor};
use dualspeed_ops::Backend;

use super::decide::decide;
use super::indices::indices;
use super::selection::{Decision, Part};
use super::{PruneContext, PruneError, PruneStage, Pruner, Scope, Selection, Tiles, VisualTokens};

/// Tokens that are pruned by one decision.
struct Row {
    image: usize,
    /// The tile, where the decision spans one.
    tile: Option<usize>,
    /// Indices into the flattened `[tiles * n]`.
    tokens: Vec<usize>,
    keep: usize,
}

/// Every valid token of every image.
pub(super) fn keep_all<B: Backend>(
    tiles: Option<&Tiles>,
    count: usize,
    n: usize,
) -> Result<Selection<B>, PruneError> {
    let Some(tiles) = tiles else { return Ok(Selection::all(count, n)) };
    tiles.check(count, n)?;
    let rows = plan(tiles, n, n, Scope::Image);
    let tokens = rows.iter().map(|row| row.tokens.clone()).collect();
    let part = Part { tokens: Some(tokens), decision: Decision::All };
    let mut next = 0;
    let spans = rows.iter().map(|row| {
        next += row.tokens.len();
        (next - row.tokens.len()..next).collect()
    });
    let spans = spans.collect();
    Ok(assemble(tiles, vec![part], &rows, spans, PruneStage::PostProjector))
}

/// [`select`](super::select) for visual tokens with tiles.
pub(super) fn select_tiles<B: Backend>(
    pruner: &dyn Pruner<B>,
    visual: &VisualTokens<B>,
    tiles: &Tiles,
    keep: usize,
    ctx: &PruneContext,
) -> Result<Selection<B>, PruneError> {
    let n = visual.num_tokens();
    let rows = plan(tiles, n, keep, pruner.scope());
    let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        groups.entry((row.tokens.len(), row.keep)).or_default().push(index);
    }
    let (mut parts, mut next) = (Vec::new(), 0);
    let mut spans: Vec<Vec<usize>> = vec![Vec::new(); rows.len()];
    for ((len, keep), members) in groups {
        let group: Vec<&Row> = members.iter().map(|member| &rows[*member]).collect();
        let tokens = group.iter().map(|row| row.tokens.clone()).collect();
        // Rows too short to be pruned stay whole.
        let (decision, most, lengths) = match keep >= len {
            true => (Decision::All, len, vec![len; members.len()]),
            false => {
                let decision =
                    decide(pruner, &compact(visual, &group), keep, &context(ctx, &group))?;
                match &decision {
                    Decision::Weights { weights, lengths } => {
                        let (most, lengths) = (weights.dims()[1], lengths.clone());
                        (decision, most, lengths)
                    }
                    _ => (decision, keep, vec![keep; members.len()]),
                }
            }
        };
        for (at, member) in members.iter().enumerate() {
            let start = next + at * most;
            spans[*member] = (start..start + lengths[at]).collect();
        }
        next += members.len() * most;
        parts.push(Part { tokens: Some(tokens), decision });
    }
    Ok(assemble(tiles, parts, &rows, spans, pruner.stage()))
}

/// One list of kept tokens per image, its tiles' one after another.
fn assemble<B: Backend>(
    tiles: &Tiles,
    parts: Vec<Part<B>>,
    rows: &[Row],
    spans: Vec<Vec<usize>>,
    stage: PruneStage,
) -> Selection<B> {
    let mut order: Vec<Vec<usize>> = vec![Vec::new(); tiles.per_image.len()];
    for (row, span) in rows.iter().zip(spans) {
        order[row.image].extend(span);
    }
    Selection {
        parts,
        lengths: order.iter().map(Vec::len).collect(),
        order: Some(order),
        tiles_per_image: tiles.per_image.clone(),
        stage,
        layer_drop: None,
    }
}

/// Which tokens are pruned together, image by image, tile by tile.
fn plan(tiles: &Tiles, n: usize, keep: usize, scope: Scope) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut first = 0;
    for (image, count) in tiles.per_image.iter().enumerate() {
        let of_tile = (first..first + count).map(|tile| {
            let valid = tiles.valid_tokens(tile, n);
            let keep = (keep * valid.len() / n).max(1).min(valid.len());
            let tokens = valid.into_iter().map(|token| tile * n + token).collect();
            Row { image, tile: Some(tile - first), tokens, keep }
        });
        match scope {
            Scope::Tile => rows.extend(of_tile),
            Scope::Image => {
                let whole = Row { image, tile: None, tokens: Vec::new(), keep: 0 };
                rows.push(of_tile.fold(whole, |mut whole, tile| {
                    whole.tokens.extend(tile.tokens);
                    whole.keep += tile.keep;
                    whole
                }));
            }
        }
        first += count;
    }
    rows
}

/// The context of some rows; tiles of one image are told apart, so that random picks differ.
fn context(ctx: &PruneContext, rows: &[&Row]) -> PruneContext {
    let name = |row: &&Row| {
        let (sample, image) = &ctx.images[row.image];
        match row.tile {
            Some(tile) if tile > 0 => (format!("{sample}/tile-{tile}"), *image),
            _ => (sample.clone(), *image),
        }
    };
    let prompts = match ctx.prompts.is_empty() {
        true => Vec::new(),
        false => rows.iter().map(|row| ctx.prompts[row.image].clone()).collect(),
    };
    PruneContext { images: rows.iter().map(name).collect(), prompts, ..ctx.clone() }
}

/// The visual tokens of some rows of equal length, `[rows, len, ..]`.
fn compact<B: Backend>(visual: &VisualTokens<B>, rows: &[&Row]) -> VisualTokens<B> {
    let device = visual.projected.device();
    let (count, len, n) =
        (rows.len(), rows.first().map_or(0, |r| r.tokens.len()), visual.num_tokens());
    let flat: Vec<usize> = rows.iter().flat_map(|r| r.tokens.iter().copied()).collect();
    let flat: Tensor<B, 1, Int> = indices(&flat, &device);
    let tiles: Vec<usize> =
        rows.iter().map(|r| r.tokens.first().map_or(0, |token| token / n)).collect();
    let tiles: Tensor<B, 1, Int> = indices(&tiles, &device);
    let compacted = |x: Tensor<B, 3>| {
        let [all, per_tile, width] = x.dims();
        // What belongs to the image as a whole has one row per tile.
        if per_tile != n {
            return x.select(0, tiles.clone());
        }
        x.reshape([all * n, width]).select(0, flat.clone()).reshape([count, len, width])
    };
    let images: Vec<usize> = rows.iter().map(|row| row.image).collect();
    VisualTokens {
        projected: compacted(visual.projected.clone()),
        features: visual.features.clone().map(|_, feature| compacted(feature)),
        tiles: None,
        compacted: true,
        text: visual.text.as_ref().map(|text| text.select(&images)),
        question: visual.question.as_ref().map(|question| question.select(&images)),
    }
}
