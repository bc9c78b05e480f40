//! `dualspeed prune`: what pruners keep, as a picture, as numbers, or against the clock.

mod bench;
mod features;
mod grid;

use std::sync::Arc;

use dualspeed_data::HostImage;
use dualspeed_model::pruner::contributions;
use dualspeed_model::{
    IGNORE_INDEX, IMAGE_TOKEN_INDEX, Llava, PruneContext, Pruner, PrunerSpec, QuestionTokens,
    Registry, TextBatch, VisionInput, VisionTower, VisualTokens, Vit,
};
use dualspeed_ops::{AutodiffBackend, Backend};
use dualspeed_train::features::pixel_values;

use super::Outcome;
use crate::cli::{Cli, PruneArgs};
use crate::extensions::{Extensions, registry};

pub fn run<B: AutodiffBackend, E: Extensions>(
    cli: &Cli,
    args: &PruneArgs,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    let registry = registry::<B::InnerBackend, E>(device);
    if args.pruner.iter().any(|name| name == "help") {
        println!("{}", registry.names().join("\n"));
        return Ok(Outcome::Done);
    }
    match (&args.features, args.bench) {
        (Some(path), _) => features::run(args, path, &registry, device)?,
        (None, true) => bench::run(cli, args, &registry, device)?,
        (None, false) => grid::run(args, &registry, device)?,
    }
    Ok(Outcome::Done)
}

/// Pruners by name; `all` stands for every registered one that can be asked for `keep` of `n`.
pub(crate) fn specs<B: Backend>(
    names: &[String],
    registry: &Registry<B>,
) -> anyhow::Result<Vec<PrunerSpec>> {
    if names.iter().any(|name| name == "all") {
        let all = registry.names().into_iter().filter(|name| name != "none");
        return Ok(all.map(PrunerSpec::new).collect());
    }
    Ok(names.iter().map(|name| name.trim().parse()).collect::<Result<_, _>>()?)
}

/// Through what a pruner sees a picture.
#[derive(Debug)]
pub enum Eye<'a, B: Backend> {
    /// A trained model: tower and projector.
    Model(&'a Llava<B>),
    /// The tower alone: its features stand for the projected ones.
    Tower(&'a Vit<B>),
}

/// A question, as far as a pruner can read it.
#[derive(Debug, Clone, Default)]
pub struct Question {
    /// The words.
    pub prompt: String,
    /// Their tokens, where there is a model that knows them.
    pub input_ids: Vec<i64>,
}

/// How much each patch goes into the tokens that `pruner` makes, row-major: 1 for a patch that is kept
/// as it is. `None` in second place for a pruner that merges, else the kept patches, ascending.
pub fn kept_patches<B: Backend>(
    pruner: &dyn Pruner<B>,
    eye: &Eye<'_, B>,
    image: &HostImage,
    question: &Question,
    (keep, seed): (usize, u64),
    device: &B::Device,
) -> anyhow::Result<(Vec<f32>, Option<Vec<usize>>)> {
    let pixels = pixel_values::<B>(&[Arc::new(image.clone())], device);
    let visual = match eye {
        Eye::Model(model) => {
            let visual = model.encode(VisionInput::Pixels(pixels), pruner.needs())?;
            let input_ids = [vec![IMAGE_TOKEN_INDEX], question.input_ids.clone()].concat();
            let labels = [vec![IGNORE_INDEX; input_ids.len()]];
            let input_ids = [input_ids];
            let batch = TextBatch { input_ids: &input_ids, labels: &labels };
            VisualTokens { question: Some(model.question_tokens(batch, &[1])), ..visual }
        }
        Eye::Tower(vit) => {
            let features = vit.features(pixels, pruner.needs());
            let none = features.hidden.clone().narrow(1, 0, 1).zeros_like();
            let question = Some(QuestionTokens { embeds: none, lengths: vec![0] });
            VisualTokens { question, ..VisualTokens::new(features.hidden.clone(), features) }
        }
    };
    let ctx = PruneContext {
        seed,
        images: vec![(format!("{:016x}", image.key), 0)],
        prompts: vec![question.prompt.clone()],
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
    let kept: Vec<usize> = (0..shares.len()).filter(|i| shares[*i] == 1.0).collect();
    let kept = (whole && kept.len() == keep).then_some(kept);
    Ok((shares, kept))
}
