//! The picture as several pruners leave it, side by side.

use anyhow::Context;
use dualspeed_data::{FitMode, ImageProcessor, load_image, read_tokenizer, scene_tokenizer};
use dualspeed_model::{Llava, Parts, PruneError, Registry, VisionTower};
use dualspeed_ops::Backend;
use image::RgbImage;

use super::PruneArgs;
use crate::commands::overwrite::refuse_existing;
use crate::commands::pruner_specs::parse_pruner_specs;
use crate::embedded_tower;
use crate::files;
use crate::output::say;
use crate::patch_contributions::{PruningPrompt, VisualEncoder, patch_contributions};
use crate::report::strip;
use crate::run_dir;

/// Side of the picture of a single pruner, in pixels.
const SINGLE_SIDE: u32 = 672;
/// Side of a picture among others, in pixels.
const SHEET_SIDE: u32 = 336;
/// Pictures in a row.
const COLUMNS: usize = 4;

/// Writes a PNG of the picture with the patches that each pruner keeps, others dimmed.
pub(super) fn run<B: Backend>(
    args: &PruneArgs,
    registry: &Registry<B>,
    parts: &Parts,
    device: &B::Device,
) -> anyhow::Result<()> {
    let (Some(image), Some(keep), Some(out)) = (&args.image, args.keep, &args.out) else {
        anyhow::bail!(
            "give --image, --keep and --out; or --features FILE with --keep, or --bench, or `--pruner help`"
        );
    };
    let specs = parse_pruner_specs(&args.pruner, registry)?;
    let pruners = specs.iter().map(|spec| registry.build(spec)).collect::<Result<Vec<_>, _>>()?;
    refuse_existing(out, args.overwrite)?;
    let model: Option<Llava<B>> =
        args.run.as_deref().map(|dir| run_dir::load_model(dir, parts, device)).transpose()?;
    let tower = embedded_tower::load(&embedded_tower::config().vision.into(), device)?;
    let (encoder, vision) = match &model {
        Some(model) => (VisualEncoder::Llava(model), model.config.vision.geometry()),
        None => (VisualEncoder::Tower(&tower), tower.geometry()),
    };
    let mut processor = ImageProcessor::new(vision.image_size, FitMode::Pad, vision.normalisation);
    processor.loading = args.images.apply(processor.loading)?;
    let picture = load_image(image, &processor.loading)?.pixels;
    let (pixels, fitted) = (processor.process(&picture), processor.fit(&picture));
    let prompt = pruning_prompt(args)?;
    let everything = args.pruner.iter().any(|name| name == "all");
    let mut shown: Vec<(String, RgbImage)> = Vec::new();
    let single = pruners.len() == 1;
    let side = if single { SINGLE_SIDE } else { SHEET_SIDE };
    for (spec, pruner) in specs.iter().zip(&pruners) {
        if everything && pruner.layer_drop(keep).is_some() {
            continue;
        }
        let found =
            patch_contributions(&**pruner, &encoder, &pixels, &prompt, keep, args.seed, device);
        let patches = match found {
            Err(error) if everything && is_passed_over(&error) => continue,
            found => found.with_context(|| format!("pruner {spec}"))?,
        };
        let (label, verb) = match patches.is_selection {
            true => (format!("{spec}  {keep} kept"), "keeps"),
            false => (format!("{spec}  {keep} merged"), "merges"),
        };
        say(format_args!("{spec} {verb} {keep} of {} patches", vision.grid.pow(2)));
        shown.push((label, strip::shaded(&fitted, vision.grid, &patches.shares, side)));
    }
    let sheet = match (single, shown.pop()) {
        (true, Some((_, picture))) => picture,
        (_, last) => {
            shown.extend(last);
            let original = strip::scaled(&fitted, side);
            shown.insert(0, (format!("{} tokens", vision.grid.pow(2)), original));
            let tiles: Vec<RgbImage> =
                shown.iter().map(|(label, picture)| strip::labelled(picture, label)).collect();
            let rows: Vec<Vec<RgbImage>> = tiles.chunks(COLUMNS).map(<[_]>::to_vec).collect();
            strip::contact_sheet(&rows)
        }
    };
    files::write_atomic(out, &strip::png(&sheet)?)?;
    say(format_args!("{}", out.display()));
    Ok(())
}

/// Whether a pruner cannot make that many tokens, or the tower does not make what it reads: `all` passes over both.
fn is_passed_over(error: &anyhow::Error) -> bool {
    use PruneError::{MissingFeature, NoGrid, TokenCount};
    let error = error.downcast_ref::<PruneError>();
    matches!(error, Some(NoGrid { .. } | MissingFeature { .. } | TokenCount { .. }))
}

/// `--prompt`, with its tokens where the run's data are scenes.
fn pruning_prompt(args: &PruneArgs) -> anyhow::Result<PruningPrompt> {
    let data = args.run.as_deref().map(run_dir::read_config).transpose()?;
    let data = data.map(|config| config.data.train).filter(|data| data.scene_config().is_some());
    let input_ids = match data {
        Some(data) if !args.prompt.is_empty() => match &data.tokenizer {
            Some(path) => read_tokenizer(path)?.encode(&args.prompt)?,
            None => scene_tokenizer()?.encode(&args.prompt)?,
        },
        _ => Vec::new(),
    };
    Ok(PruningPrompt { text: args.prompt.clone(), input_ids })
}
