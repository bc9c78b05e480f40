//! CLIP's text tower, for text-guided pruners on published checkpoints.

use std::path::Path;

use burn::tensor::Tensor;
use dualspeed_data::TextTokenizer;
use dualspeed_model::import::{LoadOptions, open_weights, read_clip_text, read_clip_text_config};
use dualspeed_model::vision::clip_text::ClipText;
use dualspeed_model::{PruneError, TextFeatures, TextTower};
use dualspeed_ops::Backend;

/// CLIP's text tower with its tokenizer: a question becomes a vector for every 77 of its tokens.
#[derive(Clone, Debug)]
pub struct ClipTextTower<B: Backend> {
    tower: ClipText<B>,
    tokenizer: TextTokenizer,
}

impl<B: Backend> ClipTextTower<B> {
    /// Reads the text half of a CLIP checkpoint, and its tokenizer.
    ///
    /// # Errors
    /// What is missing or damaged, by file and key.
    pub fn open(dir: &Path, options: &LoadOptions, device: &B::Device) -> anyhow::Result<Self> {
        let config = read_clip_text_config(&dir.join("config.json"))?;
        let tower = read_clip_text(&config, open_weights(dir)?, options.dtype, device)?;
        Ok(Self { tower, tokenizer: TextTokenizer::from_dir(dir)? })
    }

    /// The token ids of a question in pieces that fit the tower, each with its begin and end tokens.
    fn pieces(&self, question: &str) -> Result<Vec<Vec<i64>>, PruneError> {
        let config = &self.tower.config;
        let ids = self.tokenizer.encode(question);
        let ids = ids.map_err(|error| PruneError::Text { problem: error.to_string() })?;
        let room = config.max_position_embeddings.saturating_sub(2).max(1);
        let framed =
            |piece: &[i64]| [&[config.bos_token_id], piece, &[config.eos_token_id]].concat();
        let pieces: Vec<_> = ids.chunks(room).map(framed).collect();
        Ok(if pieces.is_empty() { vec![framed(&[])] } else { pieces })
    }
}

impl<B: Backend> TextTower<B> for ClipTextTower<B> {
    fn embed(&self, questions: &[String]) -> Result<TextFeatures<B>, PruneError> {
        let mut pieces = Vec::new();
        let mut lengths = Vec::with_capacity(questions.len());
        for question in questions {
            let of_question = self.pieces(question)?;
            lengths.push(of_question.len());
            pieces.extend(of_question);
        }
        let all = self.tower.embed(&pieces);
        let all = all.map_err(|error| PruneError::Text { problem: error.to_string() })?; // [pieces, p]
        let (most, p) = (lengths.iter().copied().max().unwrap_or(1), all.dims()[1]);
        let device = all.device();
        let mut start = 0;
        let mut rows: Vec<Tensor<B, 3>> = Vec::with_capacity(lengths.len());
        for length in &lengths {
            let own = all.clone().narrow(0, start, *length);
            let rest = Tensor::zeros([most - length, p], &device);
            let own = if most > *length { Tensor::cat(vec![own, rest], 0) } else { own };
            rows.push(own.unsqueeze::<3>());
            start += length;
        }
        // CLIP's patches were never trained against text, and turn away from what they show.
        Ok(TextFeatures { vectors: Tensor::cat(rows, 0), lengths, inverted: true })
    }
}
