//! What a forward is given, which view of it is wanted, what it may depend on, and what comes out.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_core::rng::{hash_str, mix};
use dualspeed_data::{HostBatch, Tiling};
use dualspeed_ops::{AutodiffBackend, Backend};

use super::memory::Recompute;
use crate::error::ModelError;
use crate::layout::{PaddedBatch, TextBatch};
use crate::nn::lora::DropoutStates;
use crate::pruner::PruneContext;
use crate::vision::VisionFeatures;

/// Which visual tokens the language model sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// All of them: the slow mode, and inference.
    Full,
    /// Pruned: the fast mode, its teacher, and pruned inference.
    Pruned {
        /// Tokens kept of each full tile; an image is one tile unless the model takes images of any resolution.
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

/// A batch as the model takes it: text from the host, images as features of the vision tower.
#[derive(Clone, Debug)]
pub struct Inputs<'a, B: Backend> {
    /// Token ids and labels.
    pub text: TextBatch<'a>,
    /// Features of the batch's images (of their tiles, where they have several), sample-major; `None` for a text-only batch.
    pub features: Option<VisionFeatures<B>>,
    /// How the tiles of each image lie; empty where every image is one tile.
    pub tilings: &'a [Tiling],
    /// Id of each sample, the key of random picks and dropout masks.
    pub sample_ids: &'a [String],
    /// First human turn of each sample, for text-guided pruners; may be left empty.
    pub prompts: &'a [String],
}

impl<'a, B: Backend> Inputs<'a, B> {
    /// A host batch with the features of its images.
    pub fn new(batch: &'a HostBatch, features: Option<VisionFeatures<B>>) -> Self {
        Self {
            text: batch.into(),
            features,
            tilings: &batch.tilings,
            sample_ids: &batch.sample_ids,
            prompts: &batch.prompts,
        }
    }

    /// The pruners' view of a batch with that many images per sample.
    ///
    /// # Errors
    /// [`ModelError::SampleIds`] if there is not one id (and, if any, one prompt) per sample.
    pub(super) fn prune_context(
        &self,
        images_per_sample: &[usize],
        ctx: &StepContext,
    ) -> Result<PruneContext, ModelError> {
        let (expected, found) = (images_per_sample.len(), self.sample_ids.len());
        if expected != found || !(self.prompts.is_empty() || self.prompts.len() == expected) {
            return Err(ModelError::SampleIds { expected, found });
        }
        let ids = self.sample_ids.iter().zip(images_per_sample);
        let images = ids.flat_map(|(id, count)| (0..*count).map(move |image| (id.clone(), image)));
        let prompts = self.prompts.iter().zip(images_per_sample);
        let prompts =
            prompts.flat_map(|(prompt, count)| std::iter::repeat_n(prompt.clone(), *count));
        Ok(PruneContext {
            seed: ctx.seed,
            step: ctx.step,
            images: images.collect(),
            prompts: prompts.collect(),
            verify: ctx.verify_picks,
        })
    }
}

impl<B: AutodiffBackend> Inputs<'_, B> {
    /// The same batch on the inner backend, for a forward without gradient.
    pub fn inner(&self) -> Inputs<'_, B::InnerBackend> {
        let inner = |features: &VisionFeatures<B>| {
            let hidden = VisionFeatures::new(features.hidden().inner());
            let others = features.iter().skip(1);
            others.fold(hidden, |inner, (name, feature)| inner.with(name, feature.clone().inner()))
        };
        Inputs {
            text: self.text,
            features: self.features.as_ref().map(inner),
            tilings: self.tilings,
            sample_ids: self.sample_ids,
            prompts: self.prompts,
        }
    }
}

/// Which positions' hidden states a forward returns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wanted {
    /// Those that predict a label: training and evaluation. Sequences are cut at the model's longest and padded.
    #[default]
    Supervised,
    /// The last of each sequence: a prompt to be continued. Nothing is cut: an answer to half a prompt would look like an
    /// answer; and nothing is padded: padding must not enter a cache.
    Last,
    /// Every position of a prompt.
    All,
}

/// What a forward may depend on besides weights and inputs: the keys of all its randomness, and what it checks and recomputes.
#[derive(Clone, Debug, Default)]
pub struct StepContext {
    /// Seed of the run.
    pub seed: u64,
    /// Optimiser step.
    pub step: u64,
    /// Whether adapter dropout is on (training, teacher included as published).
    pub dropout: bool,
    /// Whether pruners' picks are read back and checked; costs a synchronisation on a GPU, so a
    /// trainer may do it on its first steps only.
    pub verify_picks: bool,
    /// What the decoder's backward pass computes again; by default every operation keeps what it
    /// needs.
    pub recompute: Option<Recompute>,
    /// Which positions' hidden states are returned.
    pub wanted: Wanted,
}

impl StepContext {
    /// A training step: dropout on, picks checked.
    pub fn training(seed: u64, step: u64) -> Self {
        Self { seed, step, dropout: true, verify_picks: true, ..Self::default() }
    }

    /// Inference: no dropout, picks checked.
    pub fn inference(seed: u64) -> Self {
        Self { seed, verify_picks: true, ..Self::default() }
    }

    /// States of the dropout masks of a batch.
    pub(super) fn dropout_states(
        &self,
        batch: &PaddedBatch,
        sample_ids: &[String],
    ) -> Option<DropoutStates> {
        let sample = |index: usize| sample_ids.get(index).map_or(index as u64, |id| hash_str(id));
        self.dropout.then(|| {
            let key = mix(&[self.seed, self.step, hash_str("lora.dropout")]);
            let rows = (0..batch.samples())
                .flat_map(|index| (0..batch.seq).map(move |position| (sample(index), position)));
            DropoutStates::new(key, rows)
        })
    }
}

/// Hidden states where there is a loss, and where they came from.
#[derive(Clone, Debug)]
pub struct Forward<B: Backend> {
    /// Final-norm output at position `i - 1` of every label at `i`, sample-major:
    /// `[supervised, d]`. Logits are this times [`Llava::lm_head_weight`](super::Llava::lm_head_weight).
    pub hidden: Tensor<B, 2>,
    /// Label of each supervised token.
    pub targets: Vec<i64>,
    /// Supervised tokens of each sample.
    pub supervised_per_sample: Vec<usize>,
    /// Per sample, index in `input_ids` of each supervised token's label, ascending.
    pub label_positions: Vec<Vec<usize>>,
    /// Indices of the kept visual tokens in their image, `[images, longest]`, if a pruner picked them.
    pub picks: Option<Tensor<B, 2, Int>>,
    /// Length of each sequence, without padding.
    pub lengths: Vec<usize>,
    /// Padded length.
    pub seq: usize,
    /// Visual tokens in the batch, newlines included, isolators not.
    pub visual_tokens: usize,
    /// Whether each sample has an image in its sequence.
    pub has_image: Vec<bool>,
}

impl<B: Backend> Forward<B> {
    pub(super) fn new(
        hidden: Tensor<B, 2>,
        batch: PaddedBatch,
        picks: Option<Tensor<B, 2, Int>>,
    ) -> Self {
        Self {
            hidden,
            targets: batch.targets,
            supervised_per_sample: batch.label_positions.iter().map(Vec::len).collect(),
            label_positions: batch.label_positions,
            picks,
            lengths: batch.lengths,
            seq: batch.seq,
            has_image: batch.visual_runs.iter().map(|runs| !runs.is_empty()).collect(),
            visual_tokens: batch.visual_tokens,
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
        Some(self.supervised_per_sample[..sample].iter().sum::<usize>() + within)
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
            picks: forward.picks.map(Tensor::from_inner),
            targets: forward.targets,
            supervised_per_sample: forward.supervised_per_sample,
            label_positions: forward.label_positions,
            lengths: forward.lengths,
            seq: forward.seq,
            visual_tokens: forward.visual_tokens,
            has_image: forward.has_image,
        }
    }
}
