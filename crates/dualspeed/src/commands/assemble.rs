//! `dualspeed assemble`: a new model from a vision tower and a language model.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use dualspeed_data::{FitMode, ImageProcessor};
use dualspeed_model::export::names::Layout;
use dualspeed_model::import::pickle::PickleWeights;
use dualspeed_model::import::safetensors::SafetensorsWeights;
use dualspeed_model::import::source::WeightSource;
use dualspeed_model::import::{AnyModel, Checkpoint, LoadOptions, read_efficientnet};
use dualspeed_model::{Parts, ProjectorType, Tower, assemble};
use dualspeed_ops::Backend;

use super::assets;
use super::checkpoint_args::parse_name;
use super::global_args::GlobalArgs;
use crate::assets::{ASSETS, Asset, cache_dir};
use crate::hub;
use crate::output::say;
use crate::pipeline::{GenerativeModel, Pipeline, PipelineOptions, dtype_to_read};
use crate::whole_dir::WholeDir;

/// Bytes of a weights file at most.
const SHARD_BYTES: usize = 5_000_000_000;

/// Arguments of `assemble`.
#[derive(Debug, Args)]
pub(crate) struct AssembleArgs {
    /// The vision tower: a CLIP directory, weights of EfficientNet-Lite0 (.pth, .safetensors), or an asset's name.
    #[arg(long, value_name = "PATH|NAME")]
    vision: String,
    /// The language model: a directory in transformers' layout, a GGUF file, or an asset's name.
    #[arg(long, value_name = "PATH|NAME")]
    language: String,
    /// The directory to make: a checkpoint that train --init-from, generate --model, inspect and export take.
    #[arg(long)]
    out: PathBuf,
    /// Write into it even if it is not empty.
    #[arg(long)]
    overwrite: bool,
    /// Side of a convolutional tower's input in pixels; 576 visual tokens by default.
    #[arg(long, default_value_t = 384)]
    image_size: usize,
    /// One linear layer, or two with a GELU between them.
    #[arg(long, default_value = "mlp2x_gelu", value_parser = ["mlp2x_gelu", "linear"])]
    projector: String,
    /// What weights become; by default they keep the precision of the file if the backend has it.
    #[arg(long, value_parser = ["f32", "f16", "bf16"])]
    dtype: Option<String>,
    /// The seed of the projector.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Where assets are kept.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
}

pub(crate) fn run<B: Backend>(
    args: &AssembleArgs,
    global: &GlobalArgs,
    device: &B::Device,
) -> anyhow::Result<()> {
    let out = WholeDir::begin(&args.out, args.overwrite)?;
    let dtype = parse_name("dtype", args.dtype.as_ref())?;
    let load = LoadOptions { dtype: dtype_to_read(dtype), ..LoadOptions::default() };
    let vision_path = path_or_asset(&args.vision, args, global)?;
    let language_path = path_or_asset(&args.language, args, global)?;
    let options = PipelineOptions { load: load.clone(), ..PipelineOptions::default() };
    let parts = Parts::default();
    let (language, _) = Pipeline::<B>::from_checkpoint(&language_path, &options, &parts, device)?;
    let GenerativeModel::Decoder(language_model) = language.model else {
        anyhow::bail!("{} sees already; --language takes a decoder alone", language_path.display())
    };
    let vision_tower = load_vision_tower::<B>(&vision_path, args.image_size, &load, device)?;
    let projector = parse_name("projector", Some(&args.projector))?.unwrap_or_default();
    // Transformers' LLaVA has no projector of one layer.
    let layout = match projector {
        ProjectorType::Mlp2xGelu => Layout::Transformers,
        ProjectorType::Linear | ProjectorType::Custom(_) => Layout::Original,
    };
    let model = assemble(vision_tower, *language_model, projector, device, args.seed)?;
    let vision = model.config.vision.geometry();
    let pipeline = Pipeline {
        processor: ImageProcessor::new(vision.image_size, FitMode::Pad, vision.normalisation),
        model: GenerativeModel::Llava(Box::new(model.clone())),
        ..language
    };
    let options = pipeline.export_options(dtype, SHARD_BYTES);
    pipeline.save(&model, out.path(), layout, &options)?;
    out.put_in_place()?;
    say(format_args!("{}", args.out.display()));
    Ok(())
}

/// The path `text` if it exists, else the file of the asset of that name.
fn path_or_asset(text: &str, args: &AssembleArgs, global: &GlobalArgs) -> anyhow::Result<PathBuf> {
    let asset = match Asset::by_name(text) {
        Ok(asset) if !Path::new(text).exists() => asset,
        _ => {
            return hub::locate(Path::new(text), !global.quiet).with_context(|| {
                let names: Vec<_> = ASSETS.iter().map(|asset| asset.name).collect();
                format!("{text} is neither a path, nor an asset ({})", names.join(", "))
            });
        }
    };
    let cache = args.cache.clone().map_or_else(cache_dir, Ok)?;
    assets::fetch(&asset, &cache, global)
}

/// The vision tower of a CLIP directory, or of an EfficientNet's weights file for pictures of `image_size` pixels.
fn load_vision_tower<B: Backend>(
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
    Ok(read_efficientnet::<B>(&*source, image_size, device)?.into())
}
