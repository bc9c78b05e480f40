//! Which visual tokens are kept: decided, not yet carried out. A decision is made from projected tokens without gradient; what it
//! says is then done to whatever is wanted: hidden states before the projector, or projected tokens with gradient.

use std::sync::Arc;

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::{AutodiffBackend, Backend};

use super::indices::indices;
use super::{DropPlan, LayerDrop, PruneError, PruneStage};
use crate::layout::PaddedBatch;
use crate::vision::VisionFeatures;
use crate::vision::features::CLS_HIDDEN;

/// What becomes of some tiles (or of their tokens that show the picture), all with as many tokens.
#[derive(Clone, Debug)]
pub(super) enum Decision<B: Backend> {
    /// Every token stays.
    All,
    /// Ascending indices among a tile's tokens, `[tiles, keep]`.
    Picks(Tensor<B, 2, Int>),
    /// Weighted sums of a tile's tokens, `[tiles, most, n]`, or `[tiles, most, n + 1]` with the class token last.
    Weights {
        /// Constants: the gradient goes through them to the tokens.
        weights: Tensor<B, 3>,
        /// Sums of each tile.
        lengths: Vec<usize>,
    },
}

/// One decision and the tokens it is about.
#[derive(Clone, Debug)]
pub(super) struct Part<B: Backend> {
    /// For each tile its tokens, as indices into the flattened `[tiles * n]`; `None`: whole tiles, in their order.
    pub tokens: Option<Vec<Vec<usize>>>,
    pub decision: Decision<B>,
}

/// Which visual tokens of each image of a batch are kept.
#[derive(Clone, Debug)]
pub struct Selection<B: Backend> {
    pub(super) parts: Vec<Part<B>>,
    /// For each image its rows of the parts' results, one after another; `None`: the only part's tiles are the images.
    pub(super) order: Option<Vec<Vec<usize>>>,
    /// Tokens of each image.
    pub(super) lengths: Vec<usize>,
    /// Tiles of each image.
    pub(super) tiles_per_image: Vec<usize>,
    /// Where the decision is applied.
    pub(super) stage: PruneStage,
    /// What the decoder is to drop on the way.
    pub(super) layer_drop: Option<Arc<dyn LayerDrop>>,
}

impl<B: Backend> Selection<B> {
    /// Every token of images that are one tile each.
    pub fn all(images: usize, n: usize) -> Self {
        Self {
            parts: vec![Part { tokens: None, decision: Decision::All }],
            order: None,
            lengths: vec![n; images],
            tiles_per_image: vec![1; images],
            stage: PruneStage::PostProjector,
            layer_drop: None,
        }
    }

    /// Tokens kept of each image.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// The most tokens that an image keeps; all keep as many unless tiles, masks or the method make them differ.
    pub fn longest(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// What the decoder is to drop on the way.
    pub fn layer_drop(&self) -> Option<&Arc<dyn LayerDrop>> {
        self.layer_drop.as_ref()
    }

    /// What the decoder drops of a batch that was laid out so.
    pub(crate) fn drop_plan(&self, batch: &PaddedBatch) -> Option<DropPlan> {
        self.layer_drop.clone().map(|schedule| DropPlan::new(schedule, batch))
    }

    /// Whether kept tokens are weighted sums of the old ones.
    pub fn is_merge(&self) -> bool {
        self.parts.iter().any(|part| matches!(part.decision, Decision::Weights { .. }))
    }

    /// Whether the decision is carried out on the hidden states, and the result is projected.
    pub fn is_before_projector(&self) -> bool {
        self.stage == PruneStage::PreProjector && self.is_merge()
    }

    /// Whether a pruner picked tokens (some may be kept whole beside).
    fn is_pick(&self) -> bool {
        !self.is_merge()
            && self.parts.iter().any(|part| matches!(part.decision, Decision::Picks(_)))
    }

    /// Carries the selection out on the hidden states: `[tiles, n, d_v] -> [images, longest, d_v]`, zeros or repeated rows after
    /// an image's own length.
    pub fn apply_to_features(&self, features: &VisionFeatures<B>) -> Tensor<B, 3> {
        let hidden = features.hidden();
        let n = hidden.dims()[1];
        let wants_class = self.parts.iter().any(|part| match (&part.decision, &part.tokens) {
            (Decision::Weights { weights, .. }, None) => weights.dims()[2] == n + 1,
            (Decision::Weights { weights, .. }, Some(tokens)) => {
                weights.dims()[2] == tokens.first().map_or(0, Vec::len) + 1
            }
            _ => false,
        });
        self.apply(hidden, if wants_class { features.get(CLS_HIDDEN) } else { None })
    }

    /// Carries the selection out on one vector per token: `[tiles, n, width] -> [images, longest, width]`.
    pub fn apply_to(&self, source: Tensor<B, 3>) -> Tensor<B, 3> {
        self.apply(source, None)
    }

    fn apply(&self, source: Tensor<B, 3>, class: Option<Tensor<B, 3>>) -> Tensor<B, 3> {
        let Some(order) = &self.order else {
            return match self.parts.first().map(|part| &part.decision) {
                Some(Decision::Picks(picks)) => gather(source, picks.clone()),
                Some(Decision::Weights { weights, .. }) => merge(weights, source, class),
                Some(Decision::All) | None => source,
            };
        };
        let ([tiles, n, width], device) = (source.dims(), source.device());
        let flat = source.clone().reshape([tiles * n, width]);
        let rows =
            |ids: Vec<usize>| dualspeed_ops::select_rows(flat.clone(), indices(&ids, &device));
        let parts = self.parts.iter().map(|part| {
            let tokens = part.tokens.as_deref().unwrap_or_default();
            match &part.decision {
                Decision::All => rows(tokens.concat()),
                Decision::Picks(picks) => {
                    let picked = origins(tokens, picks.clone());
                    dualspeed_ops::select_rows(flat.clone(), picked)
                }
                Decision::Weights { weights, .. } => {
                    let (count, len) = (tokens.len(), tokens.first().map_or(0, Vec::len));
                    let own = rows(tokens.concat()).reshape([count, len, width]);
                    // A tile's class token goes with its tokens.
                    let class = class.clone().map(|class| {
                        let tile = |tokens: &Vec<usize>| tokens.first().map_or(0, |t| t / n);
                        class.select(
                            0,
                            indices(&tokens.iter().map(tile).collect::<Vec<_>>(), &device),
                        )
                    });
                    let merged = merge(weights, own, class);
                    let [count, most, width] = merged.dims();
                    merged.reshape([count * most, width])
                }
            }
        });
        let table = Tensor::cat(parts.collect(), 0); // [kept of all images, width]
        let longest = self.longest();
        let padded = dualspeed_ops::select_rows(table, indices(&padded(order, longest), &device));
        padded.reshape([order.len(), longest, width])
    }

    /// Where the kept tokens stood, ascending, `[images, longest]`: the index in the image, `tile * n + index` in an image of several
    /// tiles. `None` where no pruner picked any: all are kept, or tokens are merged. Entries after an image's own length mean
    /// nothing.
    pub fn picks(&self, n: usize) -> Option<Tensor<B, 2, Int>> {
        if !self.is_pick() {
            return None;
        }
        let picked = self.parts.iter().find_map(|part| match &part.decision {
            Decision::Picks(picks) => Some(picks.clone()),
            _ => None,
        })?;
        let Some(order) = &self.order else { return Some(picked) };
        let device = picked.device();
        let parts = self.parts.iter().map(|part| {
            let tokens = part.tokens.as_deref().unwrap_or_default();
            match &part.decision {
                Decision::Picks(picks) => origins(tokens, picks.clone()),
                _ => indices(&tokens.concat(), &device),
            }
        });
        let (images, longest) = (order.len(), self.longest());
        let sources = Tensor::cat(parts.collect(), 0);
        let sources = sources.select(0, indices(&padded(order, longest), &device));
        Some(sources.reshape([images, longest]) - self.first_tokens(n, &device))
    }

    /// For each image the indices of its kept tokens, read back from the device; `None` of merged tokens, which stand nowhere.
    pub fn kept(&self, n: usize) -> Option<Vec<Vec<usize>>> {
        if self.is_merge() {
            return None;
        }
        if let Some(picks) = self.picks(n) {
            let longest = self.longest().max(1);
            let picks: Vec<usize> =
                picks.into_data().iter::<i64>().map(|pick| pick.max(0) as usize).collect();
            let own = picks.chunks(longest).zip(&self.lengths);
            return Some(own.map(|(picks, length)| picks[..*length].to_vec()).collect());
        }
        let Some(order) = &self.order else {
            return Some(self.lengths.iter().map(|length| (0..*length).collect()).collect());
        };
        let all: Vec<usize> = self
            .parts
            .iter()
            .flat_map(|part| part.tokens.iter().flatten().flatten())
            .copied()
            .collect();
        let firsts = self
            .tiles_per_image
            .iter()
            .scan(0, |first, tiles| Some(std::mem::replace(first, *first + tiles * n)));
        let own = |(rows, first): (&Vec<usize>, usize)| {
            rows.iter().map(|row| all[*row] - first).collect()
        };
        Some(order.iter().zip(firsts).map(own).collect())
    }

    /// Index of each image's first token in the flattened `[tiles * n]`, `[images, 1]`.
    fn first_tokens(&self, n: usize, device: &B::Device) -> Tensor<B, 2, Int> {
        let firsts: Vec<i64> = self
            .tiles_per_image
            .iter()
            .scan(0, |first, tiles| Some(std::mem::replace(first, *first + tiles)))
            .map(|first| (first * n) as i64)
            .collect();
        let images = firsts.len();
        Tensor::from_data(TensorData::new(firsts, [images, 1]), device)
    }

    /// Checks that picks are unique, ascending and in range; reads them back from the device. Tiles have `n` tokens.
    ///
    /// # Errors
    /// [`PruneError::Picks`] for the first image where they are not.
    pub fn verify(&self, pruner: &str, n: usize) -> Result<(), PruneError> {
        let Some(picks) = self.picks(n) else { return Ok(()) };
        let picks: Vec<i64> = picks.into_data().iter::<i64>().collect();
        for (image, picks) in picks.chunks(self.longest().max(1)).enumerate() {
            let picks = &picks[..self.lengths[image].min(picks.len())];
            let tokens = n * self.tiles_per_image[image];
            let ascending = picks.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || picks.iter().any(|pick| !(0..tokens as i64).contains(pick)) {
                let (pruner, picks) = (pruner.to_owned(), picks.to_vec());
                return Err(PruneError::Picks { pruner, image, picks, tokens });
            }
        }
        Ok(())
    }
}

impl<B: AutodiffBackend> Selection<B> {
    /// The same selection on the inner backend, for a forward without gradient.
    pub fn inner(&self) -> Selection<B::InnerBackend> {
        let parts = self.parts.iter().map(|part| Part {
            tokens: part.tokens.clone(),
            decision: match &part.decision {
                Decision::All => Decision::All,
                Decision::Picks(picks) => Decision::Picks(picks.clone().inner()),
                Decision::Weights { weights, lengths } => {
                    Decision::Weights { weights: weights.clone().inner(), lengths: lengths.clone() }
                }
            },
        });
        Selection {
            parts: parts.collect(),
            order: self.order.clone(),
            lengths: self.lengths.clone(),
            tiles_per_image: self.tiles_per_image.clone(),
            stage: self.stage,
            layer_drop: self.layer_drop.clone(),
        }
    }
}

/// `weights x [tokens; class]`.
fn merge<B: Backend>(
    weights: &Tensor<B, 3>,
    tokens: Tensor<B, 3>,
    class: Option<Tensor<B, 3>>,
) -> Tensor<B, 3> {
    let source = match class {
        Some(class) => Tensor::cat(vec![tokens, class], 1),
        None => tokens,
    };
    weights.clone().cast(source.dtype()).matmul(source)
}

/// `[tiles, n, d], [tiles, keep] -> [tiles, keep, d]` for ascending unique indices; the gradient flows to the kept rows.
pub(super) fn gather<B: Backend>(source: Tensor<B, 3>, picks: Tensor<B, 2, Int>) -> Tensor<B, 3> {
    let [tiles, n, d] = source.dims();
    let keep = picks.dims()[1];
    if keep == n {
        return source;
    }
    let starts: Vec<i64> = (0..tiles).map(|tile| (tile * n) as i64).collect();
    let starts = TensorData::new(starts, [tiles, 1]);
    let starts = Tensor::<B, 2, Int>::from_data(starts, &source.device());
    let flat = (picks + starts).reshape([tiles * keep]);
    dualspeed_ops::select_rows(source.reshape([tiles * n, d]), flat).reshape([tiles, keep, d])
}

/// Where picks among some tiles' own tokens stood in the flattened `[tiles * n]`: `[tiles * keep]`.
fn origins<B: Backend>(tokens: &[Vec<usize>], picks: Tensor<B, 2, Int>) -> Tensor<B, 1, Int> {
    let [count, keep] = picks.dims();
    let len = tokens.first().map_or(0, Vec::len);
    let flat = indices::<B>(&tokens.concat(), &picks.device()).reshape([count, len]);
    flat.gather(1, picks).reshape([count * keep])
}

/// Rows of equal length, the shorter ones filled up with 0.
fn padded(rows: &[Vec<usize>], length: usize) -> Vec<usize> {
    let filled = |row: &Vec<usize>| {
        let mut row = row.clone();
        row.resize(length, 0);
        row
    };
    rows.iter().flat_map(filled).collect()
}
