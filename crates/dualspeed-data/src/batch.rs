//! Batches on the host. Padding is the model's business: it knows the visual lengths of a view.

use std::sync::Arc;

use crate::anyres::Tiling;
use crate::example::{Example, HostImage, QuestionMeta};

/// Examples side by side, unpadded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostBatch {
    /// One id per sample.
    pub sample_ids: Vec<String>,
    /// One row of ids per sample.
    pub input_ids: Vec<Vec<i64>>,
    /// One row of labels per sample, as long as its ids.
    pub labels: Vec<Vec<i64>>,
    /// All images, sample by sample, in the order of their placeholders.
    pub images: Vec<Arc<HostImage>>,
    /// How the tiles of each image lie, sample by sample; empty where every image is one tile.
    pub tilings: Vec<Tiling>,
    /// Scorable questions per sample.
    pub questions: Vec<Vec<QuestionMeta>>,
    /// First human turn per sample.
    pub prompts: Vec<String>,
}

impl HostBatch {
    /// Images, however many tiles they have.
    pub fn image_count(&self) -> usize {
        if self.tilings.is_empty() { self.images.len() } else { self.tilings.len() }
    }

    /// Visual tokens without pruning, where a tile has `n`.
    pub fn visual_tokens(&self, n: usize) -> usize {
        match self.tilings.is_empty() {
            true => self.images.len() * n,
            false => self.tilings.iter().map(Tiling::tokens).sum(),
        }
    }
}

/// Puts examples side by side.
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
