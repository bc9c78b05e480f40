//! Visual tokens before and after pruning.

use std::sync::Arc;

use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use dualspeed_ops::{AutodiffBackend, Backend};

use super::{DropPlan, LayerDrop, PruneError, Pruner};
use crate::splice::SplicePlan;
use crate::text_tower::TextFeatures;
use crate::vision::VisionFeatures;

/// How rows of visual tokens make up images (anyres: several tiles, some with padding).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tiles {
    /// Number of consecutive rows of each image.
    pub per_image: Vec<usize>,
    /// For each row which of its tokens show the picture; `None` if all do.
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
    /// Features in the language model's embedding space, `[rows, n, d]`, with gradient; a row is an
    /// image, or a tile of one.
    pub projected: Tensor<B, 3>,
    /// The vision tower's output, without gradient.
    pub features: VisionFeatures<B>,
    /// How rows make up images; `None`: each row is a whole image.
    pub tiles: Option<Tiles>,
    /// Whether rows are no full patch grids: padding was taken out, or tiles were joined. The base
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

    /// Number of rows: tiles, or images where each is one tile.
    pub fn rows(&self) -> usize {
        self.projected.dims()[0]
    }

    /// Number of images.
    pub fn images(&self) -> usize {
        self.tiles.as_ref().map_or_else(|| self.rows(), |tiles| tiles.per_image.len())
    }

    /// Tokens per row.
    pub fn tokens(&self) -> usize {
        self.projected.dims()[1]
    }

    /// Visual tokens of the whole batch, padding not counted.
    pub fn valid_tokens(&self) -> usize {
        match self.tiles.as_ref().and_then(|tiles| tiles.valid.as_ref()) {
            Some(valid) => valid.iter().flatten().filter(|valid| **valid).count(),
            None => self.rows() * self.tokens(),
        }
    }

    /// The same change to every float tensor.
    fn map(&self, f: impl Fn(Tensor<B, 3>) -> Tensor<B, 3>) -> Self {
        Self {
            projected: f(self.projected.clone()),
            features: self.features.clone().map(&f),
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

/// Visual tokens after pruning.
#[derive(Clone, Debug)]
pub struct KeptTokens<B: Backend> {
    /// `[images, most, d]`; an image has the first of them, as many as `lengths` says.
    pub tokens: Tensor<B, 3>,
    /// Tokens of each image.
    pub lengths: Vec<usize>,
    /// Whether `tokens` are merged hidden states that the projector has yet to see.
    pub unprojected: bool,
    /// Where the kept tokens stood, ascending, `[images, most]`: the index in the image's row, or
    /// `tile * n + index` in an image of several tiles; none for merges. Entries from an image's
    /// length on mean nothing.
    pub indices: Option<Tensor<B, 2, Int>>,
    /// What the decoder is to drop on the way.
    pub layer_drop: Option<Arc<dyn LayerDrop>>,
}

impl<B: Backend> KeptTokens<B> {
    /// The most tokens an image has; all have as many unless tiles, masks or the method make them
    /// differ.
    pub fn keep(&self) -> usize {
        self.tokens.dims()[1]
    }

    /// What the decoder drops of a batch that was spliced so.
    pub(crate) fn drop_plan(&self, plan: &SplicePlan) -> Option<DropPlan> {
        self.layer_drop.clone().map(|schedule| DropPlan::new(schedule, plan))
    }

    /// Checks that indices are unique, ascending and in range; reads them back from the device. `n` is
    /// the number of tokens of an image.
    ///
    /// # Errors
    /// [`PruneError::Picks`] for the first image where they are not.
    pub fn verify(&self, pruner: &str, n: usize) -> Result<(), PruneError> {
        let Some(indices) = &self.indices else { return Ok(()) };
        let keep = self.keep();
        let picks: Vec<i64> = indices.to_data().iter::<i64>().collect();
        for (image, picks) in picks.chunks(keep.max(1)).enumerate() {
            let picks = &picks[..self.lengths.get(image).copied().unwrap_or(keep)];
            let ascending = picks.windows(2).all(|pair| pair[0] < pair[1]);
            if !ascending || picks.iter().any(|pick| !(0..n as i64).contains(pick)) {
                let (pruner, picks) = (pruner.to_owned(), picks.to_vec());
                return Err(PruneError::Picks { pruner, image, picks, tokens: n });
            }
        }
        Ok(())
    }
}

impl<B: AutodiffBackend> KeptTokens<B> {
    /// The same tokens on the inner backend, for a forward without gradient.
    pub fn inner(&self) -> KeptTokens<B::InnerBackend> {
        KeptTokens {
            tokens: self.tokens.clone().inner(),
            lengths: self.lengths.clone(),
            unprojected: self.unprojected,
            indices: self.indices.clone().map(Tensor::inner),
            layer_drop: self.layer_drop.clone(),
        }
    }
}
