//! What a model takes of an example: lengths in every view it is trained in, what `max_length` cuts off, token ids.
//!
//! The arithmetic is that of the model's layout, on the host and without pixels, so that a data set can be checked before
//! the first step.

use crate::error::LimitError;
use crate::example::Example;
use crate::picture::Tiling;
use crate::source::LengthBound;
use crate::text::{IGNORE_INDEX, IMAGE_TOKEN_INDEX};

/// How many visual tokens a view has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ViewLength {
    /// Name in messages and reports: `full`, `pruned`.
    pub name: String,
    /// Tokens before those of each image.
    pub isolator_length: usize,
    /// Visual tokens kept of a tile without canvas; `None` keeps all.
    pub keep: Option<usize>,
    /// Whether the model is trained in this view; others are measured, but nothing is refused for them.
    pub trained: bool,
}

/// What a model takes of an example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceLimits {
    /// Rows of the embedding; `None` where the model is not known.
    pub vocab_size: Option<usize>,
    /// Longer sequences are cut, visual tokens and isolator counted; an image that would cross the line goes with what
    /// follows it.
    pub max_length: Option<usize>,
    /// Visual tokens of a tile without pruning.
    pub tile_tokens: usize,
    /// Whether images are cut into tiles, as many as their size asks for.
    pub tiles: bool,
    /// The views that sequences are seen in.
    pub views: Vec<ViewLength>,
}

/// Lengths of one example in one view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ViewTokens {
    /// Tokens without truncation.
    pub length: usize,
    /// Tokens that are left.
    pub kept: usize,
    /// Supervised tokens without truncation.
    pub supervised: usize,
    /// Supervised tokens that are left.
    pub supervised_kept: usize,
    /// Images that are left out.
    pub images_lost: usize,
}

impl SequenceLimits {
    /// Measures an example in each view, in their order. Of images of several tiles the pruned length is an upper bound:
    /// how many rows survive, and so how many newlines there are, is known once the pruner has seen them.
    pub fn measure(&self, example: &Example) -> Vec<ViewTokens> {
        self.views.iter().map(|view| self.measure_view(view, example)).collect()
    }

    /// Finds what the model cannot take: ids outside of the embedding, and views in which truncation leaves nothing to
    /// learn from. The first token of a sequence is never supervised, as nothing stands before it.
    ///
    /// # Errors
    /// The first such thing.
    pub fn check(&self, example: &Example) -> Result<(), LimitError> {
        if let Some(vocab_size) = self.vocab_size {
            let range = 0..vocab_size as i64;
            let outside = |id: &i64| *id != IMAGE_TOKEN_INDEX && !range.contains(id);
            if let Some(position) = example.input_ids.iter().position(outside) {
                let id = example.input_ids[position];
                return Err(LimitError::TokenId { position, id, vocab_size });
            }
        }
        let trained = self.views.iter().filter(|view| view.trained);
        for view in trained {
            let tokens = self.measure_view(view, example);
            if tokens.supervised == 0 {
                return Err(LimitError::NothingSupervised { length: example.input_ids.len() });
            }
            if tokens.supervised_kept == 0 {
                return Err(LimitError::AnswersCutOff {
                    view: view.name.clone(),
                    length: tokens.length,
                    max_length: self.max_length.unwrap_or(usize::MAX),
                    supervised: tokens.supervised,
                });
            }
        }
        Ok(())
    }

    /// An upper bound of the length in any view; `None` where images may have any number of tiles.
    pub fn longest(&self, bound: LengthBound) -> Option<usize> {
        let LengthBound { ids, images } = bound;
        if images > 0 && self.tiles {
            return None;
        }
        let trained = self.views.iter().filter(|view| view.trained);
        let image = trained.map(|view| {
            view.isolator_length + view.keep.unwrap_or(self.tile_tokens).min(self.tile_tokens)
        });
        Some(ids.saturating_sub(images) + images * image.max().unwrap_or(self.tile_tokens))
    }

    fn measure_view(&self, view: &ViewLength, example: &Example) -> ViewTokens {
        let max_length = self.max_length.unwrap_or(usize::MAX);
        let mut tokens = ViewTokens::default();
        let (mut image, mut cut) = (0, false);
        for (id, label) in example.input_ids.iter().zip(&example.labels) {
            let is_image = *id == IMAGE_TOKEN_INDEX;
            let added = if is_image { self.image_tokens(view, example, image) } else { 1 };
            image += usize::from(is_image);
            let supervised = *label != IGNORE_INDEX && tokens.length > 0 && !is_image;
            tokens.length += added;
            tokens.supervised += usize::from(supervised);
            cut |= tokens.kept + added > max_length;
            if cut {
                tokens.images_lost += usize::from(is_image);
                continue;
            }
            tokens.kept += added;
            tokens.supervised_kept += usize::from(supervised);
        }
        tokens
    }

    /// Tokens of one image of the example in a view, isolator included.
    fn image_tokens(&self, view: &ViewLength, example: &Example, image: usize) -> usize {
        let visual = match (example.tilings.get(image), view.keep) {
            (None, keep) => keep.unwrap_or(usize::MAX).min(self.tile_tokens),
            (Some(tiling), None) => tiling.full_length(),
            (Some(tiling), Some(keep)) => pruned_tiles(tiling, keep),
        };
        view.isolator_length + visual
    }
}

/// Tokens that are at most left of an image of several tiles: each tile's share of `keep`, and a newline a row.
fn pruned_tiles(tiling: &Tiling, keep: usize) -> usize {
    let tile_tokens = tiling.tile_tokens().max(1);
    let kept = tiling.valid().into_iter().map(|valid| {
        let valid = valid.into_iter().filter(|shows| *shows).count();
        (keep * valid / tile_tokens).max(1).min(valid)
    });
    kept.sum::<usize>() + tiling.rows.len()
}
