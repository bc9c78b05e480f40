//! What a forward is asked for, what it may depend on, and what it returns.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::{AutodiffBackend, Backend};

use crate::anyres::TileLayout;
use crate::error::ModelError;
use crate::llava::Llava;
use crate::lora::DropoutStates;
use crate::memory::Recompute;
use crate::pruner::{KeptTokens, PruneContext};
use crate::rng::{hash_str, mix};
use crate::splice::{SplicePlan, TextBatch};

/// Which visual tokens the language model sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All of them: the slow mode, and inference.
    Full,
    /// Pruned: the fast mode, its teacher, and pruned inference.
    Pruned {
        /// Tokens kept per image.
        keep: usize,
        /// Whether the mode isolator stands before each image's tokens.
        isolator: bool,
    },
}

impl View {
    /// Whether the isolator is in this view.
    pub fn isolator(&self) -> bool {
        matches!(self, Self::Pruned { isolator: true, .. })
    }
}

/// What a forward may depend on besides weights and inputs: the keys of all its randomness.
#[derive(Clone, Debug, Default)]
pub struct StepContext {
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser step.
    pub step: u64,
    /// Id of each sample of the batch.
    pub sample_ids: Vec<String>,
    /// First human turn of each sample, for text-guided pruners; may be left empty.
    pub prompts: Vec<String>,
    /// Whether adapter dropout is on (training, teacher included as published).
    pub dropout: bool,
    /// Whether pruners' picks are read back and checked; costs a synchronisation on a GPU, so a
    /// trainer may do it on its first steps only.
    pub verify_picks: bool,
    /// Whether tokens that a pruner selected go through the projector once more, by themselves: gradients are the same up to
    /// rounding, and the backward pass leaves out the tokens that were dropped.
    pub project_kept: bool,
    /// What the decoder's backward pass computes again; by default every operation keeps what it
    /// needs.
    pub recompute: Option<Recompute>,
    /// How the tiles of each image of the batch lie; empty where every image is one tile.
    pub layouts: Vec<TileLayout>,
}

impl StepContext {
    /// A training step: dropout on, picks checked.
    pub fn training(seed: u64, step: u64, sample_ids: Vec<String>) -> Self {
        Self { seed, step, sample_ids, dropout: true, verify_picks: true, ..Self::default() }
    }

    /// Inference: no dropout, picks checked.
    pub fn inference(seed: u64, sample_ids: Vec<String>) -> Self {
        Self { seed, sample_ids, verify_picks: true, ..Self::default() }
    }

    /// The same with images of several tiles.
    pub fn with_layouts(self, layouts: Vec<TileLayout>) -> Self {
        Self { layouts, ..self }
    }

    /// The same with the first human turn of each sample.
    pub fn with_prompts(self, prompts: Vec<String>) -> Self {
        Self { prompts, ..self }
    }

    /// The pruners' view of this context, for a batch with that many images per sample.
    ///
    /// # Errors
    /// [`ModelError::SampleIds`] if the counts do not match.
    pub fn for_images(&self, images_per_sample: &[usize]) -> Result<PruneContext, ModelError> {
        let (expected, found) = (images_per_sample.len(), self.sample_ids.len());
        if expected != found || !(self.prompts.is_empty() || self.prompts.len() == expected) {
            return Err(ModelError::SampleIds { expected, found });
        }
        let images = self
            .sample_ids
            .iter()
            .zip(images_per_sample)
            .flat_map(|(id, count)| (0..*count).map(move |image| (id.clone(), image)))
            .collect();
        let prompts = self
            .prompts
            .iter()
            .zip(images_per_sample)
            .flat_map(|(prompt, count)| std::iter::repeat_n(prompt.clone(), *count))
            .collect();
        let verify = self.verify_picks;
        Ok(PruneContext { seed: self.seed, step: self.step, images, prompts, verify })
    }

    /// States of the dropout masks of a planned batch.
    pub(crate) fn dropout_states(&self, plan: &SplicePlan) -> Option<DropoutStates> {
        let sample =
            |index: usize| self.sample_ids.get(index).map_or(index as u64, |id| hash_str(id));
        self.dropout.then(|| {
            let key = mix(&[self.seed, self.step, hash_str("lora.dropout")]);
            let rows = (0..plan.lengths.len())
                .flat_map(|index| (0..plan.seq).map(move |position| (sample(index), position)));
            DropoutStates::new(key, rows)
        })
    }
}

/// Hidden states where there is a loss, and where they came from.
#[derive(Clone, Debug)]
pub struct Forward<B: Backend> {
    /// Final-norm output at position `i - 1` of every label at `i`, sample-major:
    /// `[supervised, d]`. Logits are this times [`Llava::lm_head_weight`].
    pub hidden: Tensor<B, 2>,
    /// Label of each row.
    pub targets: Vec<i64>,
    /// Supervised rows of each sample.
    pub rows_per_sample: Vec<usize>,
    /// Per sample, index in `input_ids` of each row's label, ascending.
    pub label_positions: Vec<Vec<usize>>,
    /// Indices of the kept visual tokens, `[images, keep]`, if a pruner selected.
    pub kept: Option<Tensor<B, 2, Int>>,
    /// Length of each sequence after the splice, without padding.
    pub lengths: Vec<usize>,
    /// Padded length.
    pub seq: usize,
    /// Visual tokens in the batch, isolators not counted.
    pub visual_tokens: usize,
}

impl<B: Backend> Forward<B> {
    pub(crate) fn new(
        hidden: Tensor<B, 2>,
        plan: SplicePlan,
        kept: Option<Tensor<B, 2, Int>>,
    ) -> Self {
        Self {
            hidden,
            targets: plan.targets,
            rows_per_sample: plan.label_positions.iter().map(Vec::len).collect(),
            label_positions: plan.label_positions,
            kept,
            lengths: plan.lengths,
            seq: plan.seq,
            visual_tokens: plan.visual_tokens,
        }
    }

    /// Labels on the device, `[supervised]`.
    pub fn targets_tensor(&self) -> Tensor<B, 1, Int> {
        let targets = TensorData::new(self.targets.clone(), [self.targets.len()]);
        Tensor::from_data(targets, &self.hidden.device())
    }

    /// The row of `hidden` that predicts `input_ids[position]` of a sample, if it is supervised
    /// and was not cut off.
    pub fn row_of(&self, sample: usize, position: usize) -> Option<usize> {
        let within = self.label_positions.get(sample)?.binary_search(&position).ok()?;
        Some(self.rows_per_sample[..sample].iter().sum::<usize>() + within)
    }

    /// Tokens in the batch without padding.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
}

impl<B: AutodiffBackend> Forward<B> {
    /// A forward of the inner backend as a constant on this one: a teacher.
    pub fn from_inner(forward: Forward<B::InnerBackend>) -> Self {
        Self {
            hidden: Tensor::from_inner(forward.hidden),
            kept: forward.kept.map(Tensor::from_inner),
            targets: forward.targets,
            rows_per_sample: forward.rows_per_sample,
            label_positions: forward.label_positions,
            lengths: forward.lengths,
            seq: forward.seq,
            visual_tokens: forward.visual_tokens,
        }
    }
}

impl<B: AutodiffBackend> Llava<B> {
    /// The teacher's forward of a slow step: the same weights in the fast view, without gradient
    /// and without a graph in memory.
    ///
    /// # Errors
    /// As [`Llava::forward_kept`].
    pub fn forward_teacher(
        &self,
        batch: TextBatch<'_>,
        kept: Option<&KeptTokens<B>>,
        view: &View,
        ctx: &StepContext,
    ) -> Result<Forward<B>, ModelError> {
        use burn::module::AutodiffModule;
        let kept = kept.map(KeptTokens::inner);
        let teacher = self.valid().forward_kept(batch, kept.as_ref(), view, ctx)?;
        Ok(Forward::from_inner(teacher))
    }
}
