//! How much every patch of a picture goes into the visual tokens that a pruner makes.

use std::sync::Arc;

use anyhow::Context;
use dualspeed_data::HostImage;
use dualspeed_model::pruner::contributions;
use dualspeed_model::{
    ClipVit, IGNORE_INDEX, IMAGE_TOKEN_INDEX, Inputs, Llava, PruneContext, Pruner, QuestionTokens,
    TextBatch, VisionTower, VisualTokens,
};
use dualspeed_ops::Backend;
use dualspeed_train::features::pixel_values;

/// What makes visual tokens of a picture for a pruner to choose from.
#[derive(Debug)]
pub(crate) enum VisualEncoder<'a, B: Backend> {
    /// The vision tower and projector of a trained model.
    Llava(&'a Llava<B>),
    /// A vision tower alone: its features stand for the projected ones.
    Tower(&'a ClipVit<B>),
}

/// The prompt that a text-guided pruner reads.
#[derive(Debug, Clone, Default)]
pub(crate) struct PruningPrompt {
    pub(crate) text: String,
    /// Token ids of the text; empty where no model knows them.
    pub(crate) input_ids: Vec<i64>,
}

/// How much the patches of a picture go into the tokens of a pruner.
#[derive(Debug, Clone)]
pub(crate) struct PatchContributions {
    /// A share for every patch, row by row: 1 for a patch that is kept as it is, 0 for one that is dropped.
    pub(crate) shares: Vec<f32>,
    /// Whether the pruner keeps or drops patches whole; false for one that merges them.
    pub(crate) is_selection: bool,
}

/// Runs `pruner` on a picture with `keep` tokens to make.
///
/// # Errors
/// If the pruner drops tokens inside the decoder, cannot make that many, or needs what the encoder does not give.
pub(crate) fn patch_contributions<B: Backend>(
    pruner: &dyn Pruner<B>,
    encoder: &VisualEncoder<'_, B>,
    image: &HostImage,
    prompt: &PruningPrompt,
    keep: usize,
    seed: u64,
    device: &B::Device,
) -> anyhow::Result<PatchContributions> {
    let pixels = pixel_values::<B>(&[Arc::new(image.clone())], device);
    let visual = match encoder {
        VisualEncoder::Llava(model) => {
            let needs = pruner.needs();
            let input_ids = [[vec![IMAGE_TOKEN_INDEX], prompt.input_ids.clone()].concat()];
            let labels = [vec![IGNORE_INDEX; input_ids[0].len()]];
            let inputs = Inputs {
                text: TextBatch { input_ids: &input_ids, labels: &labels },
                features: Some(model.encode(pixels, &needs)?),
                tilings: &[],
                sample_ids: &[],
                prompts: &[],
            };
            let visual = model.visual_tokens(&inputs, &needs)?;
            visual.context("there is no picture")?
        }
        VisualEncoder::Tower(tower) => {
            let features = tower.features(pixels, &pruner.needs());
            let none = features.hidden().narrow(1, 0, 1).zeros_like();
            let question = Some(QuestionTokens { embeds: none, lengths: vec![0] });
            VisualTokens { question, ..VisualTokens::new(features.hidden(), features) }
        }
    };
    let ctx = PruneContext {
        seed,
        images: vec![(format!("{:016x}", image.key), 0)],
        prompts: vec![prompt.text.clone()],
        verify: true,
        ..Default::default()
    };
    anyhow::ensure!(
        pruner.layer_drop(keep).is_none(),
        "{} drops tokens inside the decoder; there is no patch to show before it",
        pruner.name()
    );
    let shares = contributions(pruner, &visual, keep, &ctx)?;
    let shares: Vec<f32> = shares.into_data().iter::<f32>().collect();
    let whole = shares.iter().all(|share| *share == 0.0 || *share == 1.0);
    let kept = shares.iter().filter(|share| **share == 1.0).count();
    Ok(PatchContributions { is_selection: whole && kept == keep, shares })
}
