//! `dualspeed prune`: the picture with pruned patches dimmed.

use std::sync::Arc;

use anyhow::Context;
use dualspeed_data::{FitMode, HostImage, ImageProcessor, load_image};
use dualspeed_model::{
    Llava, PruneContext, Pruner, PrunerSpec, VisionInput, VisionTower, VisualTokens, Vit, select,
};
use dualspeed_ops::{AutodiffBackend, Backend};
use dualspeed_train::features::pixel_values;

use super::{Outcome, refuse_existing};
use crate::cli::PruneArgs;
use crate::extensions::{Extensions, registry};
use crate::report::strip;
use crate::{run, tower};

/// Side of the written picture, in pixels.
const SIDE: u32 = 672;

/// Through what a pruner sees a picture.
#[derive(Debug, Clone, Copy)]
pub enum Eye<'a, B: Backend> {
    /// A trained model: tower and projector.
    Model(&'a Llava<B>),
    /// The tower alone: its features stand for the projected ones.
    Tower(&'a Vit<B>),
}

pub fn run<B: AutodiffBackend, E: Extensions>(
    args: &PruneArgs,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    let registry = registry::<B::InnerBackend, E>();
    if args.pruner == "help" {
        println!("{}", registry.names().join("\n"));
        return Ok(Outcome::Done);
    }
    let pruner = registry.build(&PrunerSpec::new(&args.pruner))?;
    refuse_existing(&args.out, args.overwrite)?;
    let model = args.run.as_deref().map(|dir| run::load(dir, device)).transpose()?;
    let vit = tower::embedded(&tower::config().vision, device)?;
    let (eye, vision) = match &model {
        Some(model) => (Eye::Model(model), model.config.vision.clone()),
        None => (Eye::Tower(&vit), vit.config.clone()),
    };
    let processor = ImageProcessor::clip(vision.image_size, FitMode::Pad);
    let picture = load_image(&args.image, &processor.limits)?.pixels;
    let kept = kept_patches(&*pruner, eye, &processor.process(&picture), args.keep, device)?;
    let kept = kept.with_context(|| {
        format!("{} merges tokens instead of choosing some; there is no patch to dim", args.pruner)
    })?;
    let shown = strip::dimmed(&processor.fit(&picture), vision.grid(), &kept, SIDE);
    run::write_atomic(&args.out, &strip::png(&shown)?)?;
    println!(
        "{} keeps {} of {} patches: {}",
        args.pruner,
        kept.len(),
        vision.num_patches(),
        args.out.display()
    );
    Ok(Outcome::Done)
}

/// Row-major indices of the patches `pruner` keeps, ascending; `None` if it merges tokens.
pub fn kept_patches<B: Backend>(
    pruner: &dyn Pruner<B>,
    eye: Eye<'_, B>,
    image: &HostImage,
    keep: usize,
    device: &B::Device,
) -> anyhow::Result<Option<Vec<usize>>> {
    let pixels = pixel_values::<B>(&[Arc::new(image.clone())], device);
    let visual = match eye {
        Eye::Model(model) => model.encode(VisionInput::Pixels(pixels), pruner.needs())?,
        Eye::Tower(vit) => {
            let features = vit.features(pixels, pruner.needs());
            VisualTokens { projected: features.hidden.clone(), features }
        }
    };
    let ctx =
        PruneContext { images: vec![(format!("{:016x}", image.key), 0)], ..Default::default() };
    let kept = select(pruner, &visual, keep, &ctx)?;
    kept.verify(pruner.name(), visual.tokens())?;
    Ok(kept.indices.map(|indices| indices.into_data().iter::<i64>().map(|i| i as usize).collect()))
}
