//! Padding and tiles: rows of equal length are made of the valid tokens, pruned together, and put back
//! image by image. All counts are known on the host.

use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::base::{decide, row_indices};
use super::{KeptTokens, PruneContext, PruneError, Pruner, Scope, Tiles, VisualTokens};
use crate::vision::VisionFeatures;

/// Tokens that are pruned by one decision.
struct Row {
    image: usize,
    /// The tile, where the decision spans one.
    tile: Option<usize>,
    /// Indices into the flattened `[rows * n]`.
    tokens: Vec<usize>,
    keep: usize,
}

/// A row's tokens in the table of all kept tokens.
#[derive(Clone, Copy, Default)]
struct Span {
    start: usize,
    len: usize,
}

/// Every valid token of every image.
pub(crate) fn keep_all<B: Backend>(visual: &VisualTokens<B>) -> Result<KeptTokens<B>, PruneError> {
    let (rows, n) = (visual.rows(), visual.tokens());
    let Some(tiles) = &visual.tiles else {
        return Ok(KeptTokens {
            tokens: visual.projected.clone(),
            lengths: vec![n; rows],
            unprojected: false,
            indices: Some(row_indices(rows, n, &visual.projected.device())),
            layer_drop: None,
        });
    };
    tiles.check(rows, n)?;
    let rows = plan(tiles, n, n, Scope::Image);
    let mut table = Table::new(visual);
    let spans: Vec<Span> = rows.iter().map(|row| table.push_whole(&row.tokens, false)).collect();
    Ok(table.assemble(tiles, n, &rows, &spans))
}

/// [`select`](super::select) for visual tokens with tiles.
pub(super) fn select_tiles<B: Backend>(
    pruner: &dyn Pruner<B>,
    visual: &VisualTokens<B>,
    keep: usize,
    ctx: &PruneContext,
) -> Result<KeptTokens<B>, PruneError> {
    let Some(tiles) = &visual.tiles else { return keep_all(visual) };
    let n = visual.tokens();
    let rows = plan(tiles, n, keep, pruner.scope());
    let mut groups: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (index, row) in rows.iter().enumerate() {
        groups.entry((row.tokens.len(), row.keep)).or_default().push(index);
    }
    let mut table = Table::new(visual);
    let mut spans = vec![Span::default(); rows.len()];
    let mut whole = Vec::new();
    for ((len, keep), members) in groups {
        if keep >= len {
            whole.extend(members);
            continue;
        }
        let group: Vec<&Row> = members.iter().map(|member| &rows[*member]).collect();
        let decided = decide(pruner, &compact(visual, &group), keep, &context(ctx, &group))?;
        let most = decided.tokens.dims()[1];
        let first = table.push(decided.tokens);
        for (i, member) in members.iter().enumerate() {
            spans[*member] = Span { start: first + i * most, len: decided.lengths[i] };
        }
        table.unprojected |= decided.unprojected;
        match decided.indices {
            Some(indices) => table.sources.push(origins(&group, indices)),
            None => table.merged = true,
        }
    }
    // Rows too short to be pruned; among merged hidden states they must be hidden states, too.
    let unprojected = table.unprojected;
    for member in whole {
        spans[member] = table.push_whole(&rows[member].tokens, unprojected);
    }
    Ok(table.assemble(tiles, n, &rows, &spans))
}

/// Which tokens are pruned together, image by image, tile by tile.
fn plan(tiles: &Tiles, n: usize, keep: usize, scope: Scope) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut first = 0;
    for (image, count) in tiles.per_image.iter().enumerate() {
        let of_tile = (first..first + count).map(|row| {
            let valid = tiles.valid_tokens(row, n);
            let keep = (keep * valid.len() / n).max(1).min(valid.len());
            let tokens = valid.into_iter().map(|token| row * n + token).collect();
            Row { image, tile: Some(row - first), tokens, keep }
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
    let (count, len, n) = (rows.len(), rows.first().map_or(0, |r| r.tokens.len()), visual.tokens());
    let index = |ids: Vec<i64>| {
        let ids = TensorData::new(ids, [count * len]);
        Tensor::<B, 1, Int>::from_data(ids, &device)
    };
    let flat = index(rows.iter().flat_map(|r| r.tokens.iter().map(|t| *t as i64)).collect());
    let tokens = |x: Tensor<B, 3>| {
        let [_, _, width] = x.dims();
        let rows = x.dims()[0] * n;
        x.reshape([rows, width]).select(0, flat.clone()).reshape([count, len, width])
    };
    // Attention has its tokens in the last dimension.
    let attention = |x: Tensor<B, 3>| tokens(x.swap_dims(1, 2)).swap_dims(1, 2);
    let first: Vec<i64> =
        rows.iter().map(|r| r.tokens.first().map_or(0, |token| token / n) as i64).collect();
    let first = Tensor::<B, 1, Int>::from_data(TensorData::new(first, [count]), &device);
    let images: Vec<usize> = rows.iter().map(|row| row.image).collect();
    let features = visual.features.clone();
    VisualTokens {
        projected: tokens(visual.projected.clone()),
        features: VisionFeatures {
            hidden: tokens(features.hidden),
            cls_attention: features.cls_attention.map(attention),
            keys: features.keys.map(tokens),
            patch_text: features.patch_text.map(tokens),
            cls_hidden: features.cls_hidden.map(|x| x.select(0, first.clone())),
            last_cls_attention: features.last_cls_attention.map(attention),
            last_keys: features.last_keys.map(tokens),
        },
        tiles: None,
        compacted: true,
        text: visual.text.as_ref().map(|text| text.select(&images)),
        question: visual.question.as_ref().map(|question| question.select(&images)),
    }
}

/// Where picks among compacted tokens stood in the flattened `[rows * n]`: `[rows * keep]`.
fn origins<B: Backend>(rows: &[&Row], picks: Tensor<B, 2, Int>) -> Tensor<B, 1, Int> {
    let [count, keep] = picks.dims();
    let len = rows.first().map_or(0, |row| row.tokens.len());
    let flat: Vec<i64> = rows.iter().flat_map(|r| r.tokens.iter().map(|t| *t as i64)).collect();
    let flat = Tensor::<B, 2, Int>::from_data(TensorData::new(flat, [count, len]), &picks.device());
    flat.gather(1, picks).reshape([count * keep])
}

/// All kept tokens on one axis, in the order in which rows were pruned.
struct Table<'a, B: Backend> {
    visual: &'a VisualTokens<B>,
    parts: Vec<Tensor<B, 2>>,
    sources: Vec<Tensor<B, 1, Int>>,
    len: usize,
    unprojected: bool,
    merged: bool,
}

impl<'a, B: Backend> Table<'a, B> {
    fn new(visual: &'a VisualTokens<B>) -> Self {
        let (parts, sources) = (Vec::new(), Vec::new());
        Self { visual, parts, sources, len: 0, unprojected: false, merged: false }
    }

    /// Appends `[rows, most, d]`; where it begins.
    fn push(&mut self, tokens: Tensor<B, 3>) -> usize {
        let [rows, most, d] = tokens.dims();
        self.parts.push(tokens.reshape([rows * most, d]));
        self.len += rows * most;
        self.len - rows * most
    }

    /// Appends tokens as they are.
    fn push_whole(&mut self, tokens: &[usize], unprojected: bool) -> Span {
        let start = self.len;
        if !tokens.is_empty() {
            let source = match unprojected {
                true => &self.visual.features.hidden,
                false => &self.visual.projected,
            };
            let [rows, n, d] = source.dims();
            let ids: Vec<i64> = tokens.iter().map(|token| *token as i64).collect();
            let ids = TensorData::new(ids, [tokens.len()]);
            let ids = Tensor::<B, 1, Int>::from_data(ids, &source.device());
            let source = source.clone().reshape([rows * n, d]);
            self.parts.push(dualspeed_ops::select_rows(source, ids.clone()));
            self.sources.push(ids);
            self.len += tokens.len();
        }
        Span { start, len: tokens.len() }
    }

    /// One row per image, its tiles' tokens one after another.
    fn assemble(self, tiles: &Tiles, n: usize, rows: &[Row], spans: &[Span]) -> KeptTokens<B> {
        let images = tiles.per_image.len();
        let mut order: Vec<Vec<i64>> = vec![Vec::new(); images];
        for (row, span) in rows.iter().zip(spans) {
            order[row.image].extend((span.start..span.start + span.len).map(|at| at as i64));
        }
        let lengths: Vec<usize> = order.iter().map(Vec::len).collect();
        let most = lengths.iter().copied().max().unwrap_or(0);
        let device = self.visual.projected.device();
        let flat: Vec<i64> = order
            .into_iter()
            .flat_map(|mut row| {
                row.resize(most, 0);
                row
            })
            .collect();
        let flat = TensorData::new(flat, [images * most]);
        let flat = Tensor::<B, 1, Int>::from_data(flat, &device);
        let table = Tensor::cat(self.parts, 0);
        let d = table.dims()[1];
        let starts: Vec<i64> = tiles
            .per_image
            .iter()
            .scan(0, |first, rows| Some(std::mem::replace(first, *first + rows)))
            .map(|first| (first * n) as i64)
            .collect();
        let starts = Tensor::<B, 2, Int>::from_data(TensorData::new(starts, [images, 1]), &device);
        let indices = (!self.merged).then(|| {
            let sources = Tensor::cat(self.sources, 0);
            sources.select(0, flat.clone()).reshape([images, most]) - starts
        });
        KeptTokens {
            tokens: dualspeed_ops::select_rows(table, flat).reshape([images, most, d]),
            lengths,
            unprojected: self.unprojected,
            indices,
            layer_drop: None,
        }
    }
}
