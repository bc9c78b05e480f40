//! Batches on the host, unpadded: how long a row becomes depends on the visual tokens that the model keeps.

use std::sync::Arc;

use crate::example::Example;
use crate::picture::{HostImage, Tiling};
use crate::question::QuestionMeta;

/// Examples side by side, unpadded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostBatch {
    /// One id per sample.
    pub sample_ids: Vec<String>,
    /// Token ids per sample, with [`IMAGE_TOKEN_INDEX`](crate::text::IMAGE_TOKEN_INDEX) once per image.
    pub input_ids: Vec<Vec<i64>>,
    /// Labels per sample, as many as its ids; [`IGNORE_INDEX`](crate::text::IGNORE_INDEX) where nothing is supervised.
    pub labels: Vec<Vec<i64>>,
    /// All images, sample by sample, in the order of their placeholders; of images of several tiles, all tiles.
    pub images: Vec<Arc<HostImage>>,
    /// How the tiles of each image lie, sample by sample; empty where every image is one tile.
    pub tilings: Vec<Tiling>,
    /// Scorable questions per sample.
    pub questions: Vec<Vec<QuestionMeta>>,
    /// First human turn per sample.
    pub prompts: Vec<String>,
}

impl HostBatch {
    /// Number of images, however many tiles they have.
    pub fn image_count(&self) -> usize {
        if self.tilings.is_empty() { self.images.len() } else { self.tilings.len() }
    }

    /// Number of visual tokens without pruning, where a tile has `tile_tokens`.
    pub fn visual_tokens(&self, tile_tokens: usize) -> usize {
        match self.tilings.is_empty() {
            true => self.images.len() * tile_tokens,
            false => self.tilings.iter().map(Tiling::full_length).sum(),
        }
    }
}

/// Puts examples side by side, in their order.
pub fn collate(examples: Vec<Example>) -> HostBatch {
    let mut batch = HostBatch::default();
    for example in examples {
        batch.sample_ids.push(example.id);
        batch.input_ids.push(example.input_ids);
        batch.labels.push(example.labels);
        batch.images.extend(example.images);
        batch.tilings.extend(example.tilings);
        batch.questions.push(example.questions);
        batch.prompts.push(example.prompt);
    }
    batch
}
