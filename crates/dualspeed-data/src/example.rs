//! What every data set yields.

use std::sync::Arc;

use crate::picture::{HostImage, Tiling};
use crate::question::QuestionMeta;
use crate::text::{Conversation, Encoded};

/// One training example on the host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Example {
    /// Names the example in logs and errors.
    pub id: String,
    /// Token ids, with [`IMAGE_TOKEN_INDEX`](crate::text::IMAGE_TOKEN_INDEX) once per image.
    pub input_ids: Vec<i64>,
    /// As long as `input_ids`: the id itself where it is supervised, else [`IGNORE_INDEX`](crate::text::IGNORE_INDEX).
    pub labels: Vec<i64>,
    /// Images in the order of their placeholders; of images of several tiles, all tiles.
    pub images: Vec<Arc<HostImage>>,
    /// How the tiles of each image lie; empty where every image is one tile.
    pub tilings: Vec<Tiling>,
    /// Questions whose answers can be scored; may be empty.
    pub questions: Vec<QuestionMeta>,
    /// What the human says first, image placeholders taken out: what text-guided pruners go by.
    pub prompt: String,
}

impl Example {
    /// Makes an example of an encoded conversation and its images, one tile each, without questions to score.
    pub fn new(
        id: impl Into<String>,
        conversation: &Conversation,
        encoded: Encoded,
        images: Vec<Arc<HostImage>>,
    ) -> Self {
        let Encoded { input_ids, labels, .. } = encoded;
        let (tilings, questions) = (Vec::new(), Vec::new());
        let prompt = conversation.prompt();
        Self { id: id.into(), input_ids, labels, images, tilings, questions, prompt }
    }

    /// Forgets the pixels; keys and sizes of the images stay.
    pub fn drop_pixels(&mut self) {
        for image in &mut self.images {
            let (key, size) = (image.key, image.size);
            *image = Arc::new(HostImage { key, size, pixels: Vec::new() });
        }
    }

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
