//! Visual tokens as a pruner sees them.

use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::text_tower::TextFeatures;
use super::{PruneError, Pruner};
use crate::vision::VisionFeatures;

/// How tiles make up images (LLaVA-NeXT: several tiles, some with padding).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiles {
    /// Number of consecutive tiles of each image.
    pub per_image: Vec<usize>,
    /// For each tile which of its tokens show the picture; `None` if all do.
    pub valid: Option<Vec<Vec<bool>>>,
}

impl Tiles {
    /// Image of each row.
    pub(super) fn image_of_row(&self) -> Vec<usize> {
        let images = self.per_image.iter().enumerate();
        images.flat_map(|(image, rows)| std::iter::repeat_n(image, *rows)).collect()
    }

    /// The valid tokens of a row of `n`.
    pub(super) fn valid_tokens(&self, row: usize, n: usize) -> Vec<usize> {
        match &self.valid {
            Some(valid) => (0..n).filter(|token| valid[row][*token]).collect(),
            None => (0..n).collect(),
        }
    }

    /// Checks that `rows` rows of `n` tokens can be grouped so.
    pub(super) fn check(&self, rows: usize, n: usize) -> Result<(), PruneError> {
        let problem = match (&self.valid, self.per_image.iter().sum::<usize>()) {
            (_, sum) if sum != rows => format!("images of {sum} tiles in all, but {rows} rows"),
            (Some(valid), _) if valid.len() != rows => {
                format!("masks for {} of {rows} rows", valid.len())
            }
            (Some(valid), _) => match valid.iter().find(|row| row.len() != n) {
                Some(row) => format!("a mask of {} for {n} tokens", row.len()),
                None => String::new(),
            },
            (None, _) => String::new(),
        };
        if !problem.is_empty() {
            return Err(PruneError::Tiles { problem });
        }
        let mut first = 0;
        for (image, count) in self.per_image.iter().enumerate() {
            if (first..first + count).all(|row| self.valid_tokens(row, n).is_empty()) {
                let problem = format!("image {image} has no valid token");
                return Err(PruneError::Tiles { problem });
            }
            first += count;
        }
        Ok(())
    }
}

/// Token embeddings of questions, as the language model has them.
#[derive(Clone, Debug)]
pub struct QuestionTokens<B: Backend> {
    /// `[images, m, d]`, zeros after each question's own length.
    pub embeds: Tensor<B, 3>,
    /// Tokens of each question; may be 0.
    pub lengths: Vec<usize>,
}

impl<B: Backend> QuestionTokens<B> {
    pub(super) fn select(&self, images: &[usize]) -> Self {
        let ids: Vec<i64> = images.iter().map(|image| *image as i64).collect();
        let ids = TensorData::new(ids, [images.len()]);
        let ids = Tensor::<B, 1, Int>::from_data(ids, &self.embeds.device());
        Self {
            embeds: self.embeds.clone().select(0, ids),
            lengths: images.iter().map(|image| self.lengths[*image]).collect(),
        }
    }
}

/// Visual tokens of a batch of images, before pruning.
#[derive(Clone, Debug)]
pub struct VisualTokens<B: Backend> {
    /// Tokens in the language model's embedding space, `[tiles, n, d]`, without gradient; an image is one tile or several.
    pub projected: Tensor<B, 3>,
    /// The vision tower's output by name, without gradient.
    pub features: VisionFeatures<B>,
    /// How tiles make up images; `None`: each tile is a whole image.
    pub tiles: Option<Tiles>,
    /// Whether tiles are no full patch grids: padding was taken out, or tiles were joined. The base
    /// sets it for pruners.
    pub compacted: bool,
    /// Each image's question in the space shared with text.
    pub text: Option<TextFeatures<B>>,
    /// Each image's question as token embeddings.
    pub question: Option<QuestionTokens<B>>,
}

impl<B: Backend> VisualTokens<B> {
    /// Tokens of whole images, without a question.
    pub fn new(projected: Tensor<B, 3>, features: VisionFeatures<B>) -> Self {
        Self { projected, features, tiles: None, compacted: false, text: None, question: None }
    }

    /// Number of tiles; of images where each is one tile.
    pub fn num_tiles(&self) -> usize {
        self.projected.dims()[0]
    }

    /// Number of images.
    pub fn num_images(&self) -> usize {
        self.tiles.as_ref().map_or_else(|| self.num_tiles(), |tiles| tiles.per_image.len())
    }

    /// Tokens per tile.
    pub fn num_tokens(&self) -> usize {
        self.projected.dims()[1]
    }

    /// Visual tokens of the whole batch, padding not counted.
    pub fn valid_tokens(&self) -> usize {
        match self.tiles.as_ref().and_then(|tiles| tiles.valid.as_ref()) {
            Some(valid) => valid.iter().flatten().filter(|valid| **valid).count(),
            None => self.num_tiles() * self.num_tokens(),
        }
    }

    /// The same change to every float tensor.
    fn map(&self, f: impl Fn(Tensor<B, 3>) -> Tensor<B, 3>) -> Self {
        Self {
            projected: f(self.projected.clone()),
            features: self.features.clone().map(|_, feature| f(feature)),
            tiles: self.tiles.clone(),
            compacted: self.compacted,
            text: self.text.clone().map(|text| TextFeatures { vectors: f(text.vectors), ..text }),
            question: self
                .question
                .clone()
                .map(|question| QuestionTokens { embeds: f(question.embeds), ..question }),
        }
    }

    /// Cut off from any gradient.
    pub fn detach(&self) -> Self {
        self.map(Tensor::detach)
    }

    /// Without gradient, and in f32 unless the pruner takes what there is: bf16 cosines tie.
    pub(super) fn for_pruner(&self, pruner: &dyn Pruner<B>) -> Self {
        match pruner.wants_f32() {
            true => self.map(|x| x.detach().cast(FloatDType::F32)),
            false => self.detach(),
        }
    }
}
