//! The picture as several pruners leave it, side by side.

use anyhow::Context;
use dualspeed_data::{FitMode, ImageProcessor, load_image, read_tokenizer, scene_tokenizer};
use dualspeed_model::{Llava, PruneError, Registry};
use dualspeed_ops::Backend;
use image::RgbImage;

use super::{Eye, Question, kept_patches, specs};
use crate::cli::PruneArgs;
use crate::commands::refuse_existing;
use crate::report::strip;
use crate::{run as runs, tower};

/// Side of a single pruner's picture, in pixels.
const ALONE: u32 = 672;
/// Side of a picture among others.
const BESIDE: u32 = 336;
/// Pictures in a row.
const COLUMNS: usize = 4;

pub(super) fn run<B: Backend>(
    args: &PruneArgs,
    registry: &Registry<B>,
    device: &B::Device,
) -> anyhow::Result<()> {
    let (Some(image), Some(keep), Some(out)) = (&args.image, args.keep, &args.out) else {
        anyhow::bail!("give --image, --keep and --out");
    };
    let specs = specs(&args.pruner, registry)?;
    let pruners = specs.iter().map(|spec| registry.build(spec)).collect::<Result<Vec<_>, _>>()?;
    refuse_existing(out, args.overwrite)?;
    let model: Option<Llava<B>> =
        args.run.as_deref().map(|dir| runs::load(dir, device)).transpose()?;
    let vit = tower::embedded(&tower::config().vision.into(), device)?;
    let (eye, vision) = match &model {
        Some(model) => (Eye::Model(model), model.config.vision.clone()),
        None => (Eye::Tower(&vit), vit.config.clone().into()),
    };
    let processor = ImageProcessor::new(vision.image_size(), FitMode::Pad, vision.normalisation());
    let picture = load_image(image, &processor.limits)?.pixels;
    let (host, fitted) = (processor.process(&picture), processor.fit(&picture));
    let question = question(args)?;
    let everything = args.pruner.iter().any(|name| name == "all");
    let mut shown: Vec<(String, RgbImage)> = Vec::new();
    let single = pruners.len() == 1;
    let side = if single { ALONE } else { BESIDE };
    for (spec, pruner) in specs.iter().zip(&pruners) {
        if everything && pruner.layer_drop(keep).is_some() {
            continue;
        }
        let decided = kept_patches(&**pruner, &eye, &host, &question, (keep, args.seed), device);
        let (shares, kept) = match decided {
            Err(error) if everything && no_grid(&error) => continue,
            decided => decided.with_context(|| format!("pruner {spec}"))?,
        };
        let (label, said) = match &kept {
            Some(kept) => (format!("{spec}  {} kept", kept.len()), "keeps"),
            None => (format!("{spec}  {keep} merged"), "merges"),
        };
        println!("{spec} {said} {keep} of {} patches", vision.num_patches());
        shown.push((label, strip::shaded(&fitted, vision.grid(), &shares, side)));
    }
    let sheet = match (single, shown.pop()) {
        (true, Some((_, picture))) => picture,
        (_, last) => {
            shown.extend(last);
            let original = strip::scaled(&fitted, side);
            shown.insert(0, (format!("{} tokens", vision.num_patches()), original));
            let tiles: Vec<RgbImage> =
                shown.iter().map(|(label, picture)| strip::labelled(picture, label)).collect();
            let rows: Vec<Vec<RgbImage>> = tiles.chunks(COLUMNS).map(<[_]>::to_vec).collect();
            strip::contact_sheet(&rows)
        }
    };
    runs::write_atomic(out, &strip::png(&sheet)?)?;
    println!("{}", out.display());
    Ok(())
}

/// Whether a pruner cannot make that many tokens, which `all` passes over.
fn no_grid(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<PruneError>(), Some(PruneError::NoGrid { .. }))
}

/// The prompt, with its tokens where the run's words are the scenes'.
fn question(args: &PruneArgs) -> anyhow::Result<Question> {
    let data = args.run.as_deref().map(runs::config).transpose()?;
    let data = data.map(|config| config.data.train).filter(|data| data.scene_config().is_some());
    let input_ids = match data {
        Some(data) if !args.prompt.is_empty() => match &data.tokenizer {
            Some(path) => read_tokenizer(path)?.encode(&args.prompt)?,
            None => scene_tokenizer()?.encode(&args.prompt)?,
        },
        _ => Vec::new(),
    };
    Ok(Question { prompt: args.prompt.clone(), input_ids })
}
