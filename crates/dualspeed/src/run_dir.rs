//! Run directories: the configuration, the model that a run started from, and the model that it ended with.

use std::path::{Path, PathBuf};

use dualspeed_model::import::{Architecture, Checkpoint, FloatType, LoadOptions};
use dualspeed_model::{AnyresConfig, Dtype, Llava, LlavaConfig, Parts, VisionConfig};
use dualspeed_ops::Backend;
use dualspeed_train::{TrainConfig, TrainError, check_format, load_trained};

use crate::base_text::adopt_text;
use crate::embedded_tower;

/// Runs that start from one another at most; a longer chain is a circle, as stages are two or three.
const MAX_CHAIN: usize = 16;

/// Reads the configuration that the run in `dir` was made with.
///
/// # Errors
/// If `dir` is no run directory, or one of another version.
pub fn read_config(dir: &Path) -> anyhow::Result<TrainConfig> {
    let path = dir.join("config.toml");
    anyhow::ensure!(
        path.is_file(),
        "{} is no run directory: it has no config.toml (quickstart's runs are in runs/quickstart/seed-0/)",
        dir.display()
    );
    let mut config = own_config(dir)?;
    // TOML has no way to say that something is absent; the checkpoint does.
    adopt_base_checkpoint(&mut config)?;
    Ok(config)
}

/// The configuration in a run directory, once its checkpoints are known to be of this version: keys of another version
/// would be refused one by one, to no end.
fn own_config(dir: &Path) -> Result<TrainConfig, TrainError> {
    check_format(dir)?;
    Ok(TrainConfig::load(&dir.join("config.toml"), &[])?)
}

/// Whether a directory holds a published checkpoint, not a run.
pub fn is_checkpoint(dir: &Path) -> bool {
    !dir.join("config.toml").is_file() && dir.join("config.json").is_file()
}

/// Replaces the architecture in `config` by that of the published checkpoint that the run starts from, itself or through
/// the runs that `init_from` leads to; without such a checkpoint nothing changes.
///
/// Isolator, adapters, lengths, precision and what becomes of newlines and positions after pruning stay as configured.
/// Generated scenes are then in the words of the checkpoint's tokenizer. Conversations from disk are written out, tokenized, and
/// their pictures fitted, as the checkpoint has it, unless the configuration says otherwise; what was taken is told in the lines
/// that are returned.
///
/// # Errors
/// If the checkpoint cannot be read or is no LLaVA.
pub fn adopt_base_checkpoint(config: &mut TrainConfig) -> anyhow::Result<Vec<String>> {
    let Some(dir) = resolve_base_checkpoint(config)? else { return Ok(Vec::new()) };
    let tokenizer = dir.join("tokenizer.json");
    for data in [Some(&mut config.data.train), config.data.valid.as_mut()].into_iter().flatten() {
        if data.llava_json.is_none() && data.tokenizer.is_none() && tokenizer.is_file() {
            data.tokenizer = Some(tokenizer.clone());
        }
    }
    let notes = adopt_text(config, &dir)?;
    let checkpoint = Checkpoint::open(&dir, &LoadOptions::default())?;
    let Architecture::Llava(base) = &checkpoint.config.architecture else {
        anyhow::bail!("{} is no LLaVA; training starts from a model with vision", dir.display())
    };
    let model = &mut config.model;
    let newline = model.anyres.as_ref().map(|anyres| anyres.newline).unwrap_or_default();
    model.anyres = base.anyres.clone().map(|anyres| AnyresConfig { newline, ..anyres });
    model.vision = base.vision.clone();
    model.text = base.text.clone();
    model.mm_projector_type = base.mm_projector_type.clone();
    model.validate()?;
    Ok(notes)
}

/// The published checkpoint that `config.init_from` names, or that the first of the runs it leads to started from.
fn resolve_base_checkpoint(config: &TrainConfig) -> anyhow::Result<Option<PathBuf>> {
    let mut from = config.init_from.clone();
    for _ in 0..MAX_CHAIN {
        match from {
            Some(dir) if is_checkpoint(&dir) => return Ok(Some(dir)),
            Some(dir) if dir.join("config.toml").is_file() => {
                from = own_config(&dir)?.init_from;
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// The model of the published checkpoint in `dir` with the isolator and adapters of `config`.
fn model_from_checkpoint<B: Backend>(
    config: &TrainConfig,
    dir: &Path,
    device: &B::Device,
) -> anyhow::Result<Llava<B>> {
    let dtype = match config.model.dtype {
        Dtype::Float32 => FloatType::F32,
        Dtype::BFloat16 => FloatType::Bf16,
        Dtype::Float16 => FloatType::F16,
    };
    let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
    let (mut model, _) = Checkpoint::open(dir, &options)?.load_llava::<B>(&options, device)?;
    let length = config.model.isolator_length;
    if model.config.isolator_length != length {
        model = model.with_isolator_length(length, device, config.seed)?;
    }
    if let Some(lora) = &config.model.lora {
        model = model.with_lora(lora, device, config.seed)?;
    }
    anyhow::ensure!(
        model.config.text == config.model.text && model.config.vision == config.model.vision,
        "{} has changed since this run began; its config.json no longer says what config.toml does",
        dir.display()
    );
    model.config = config.model.clone();
    Ok(model)
}

/// The model that a run with this configuration starts from: fresh weights with the embedded vision tower (or one of
/// `parts`), or the model that the run `config.init_from` ended with, or the published checkpoint it names.
///
/// # Errors
/// If the tower or the earlier run does not fit the configuration.
pub fn initial_model<B: Backend>(
    config: &TrainConfig,
    parts: &Parts,
    device: &B::Device,
) -> anyhow::Result<Llava<B>> {
    initial_model_at(config, parts, device, 0)
}

fn initial_model_at<B: Backend>(
    config: &TrainConfig,
    parts: &Parts,
    device: &B::Device,
    depth: usize,
) -> anyhow::Result<Llava<B>> {
    anyhow::ensure!(depth < MAX_CHAIN, "the runs' init_from lead in a circle");
    let Some(run) = &config.init_from else {
        let model = config.model.init_with::<B>(parts, device, config.seed)?;
        return match &config.model.vision {
            // A tower of another crate brings its own weights.
            VisionConfig::Custom(_) => Ok(model),
            vision => Ok(model.with_vision_tower(embedded_tower::load(vision, device)?)?),
        };
    };
    if is_checkpoint(run) {
        return model_from_checkpoint(config, run, device);
    }
    let earlier = read_config(run)?;
    // Adapters and lengths may differ between stages, the weights' shapes may not.
    let same = LlavaConfig {
        lora: earlier.model.lora.clone(),
        max_length: earlier.model.max_length,
        pad_to_multiple: earlier.model.pad_to_multiple,
        ..config.model.clone()
    };
    anyhow::ensure!(
        same == earlier.model,
        "the model in {} has another architecture than [model] here; copy that section from its config.toml",
        run.display()
    );
    let mut model = load_model_at::<B>(run, parts, device, depth + 1)?;
    model.config.max_length = config.model.max_length;
    model.config.pad_to_multiple = config.model.pad_to_multiple;
    match (&config.model.lora, &earlier.model.lora) {
        (Some(lora), None) => Ok(model.with_lora(lora, device, config.seed)?),
        (wanted, found) if wanted == found => Ok(model),
        _ => anyhow::bail!(
            "the run {} has adapters that [model.lora] here does not describe; copy that section from its config.toml",
            run.display()
        ),
    }
}

/// Loads the model that the run in `dir` ended with, or the newest checkpoint of one that has not ended.
///
/// # Errors
/// If `dir` is no run directory or its checkpoint is damaged.
pub fn load_model<B: Backend>(
    dir: &Path,
    parts: &Parts,
    device: &B::Device,
) -> anyhow::Result<Llava<B>> {
    load_model_at(dir, parts, device, 0)
}

fn load_model_at<B: Backend>(
    dir: &Path,
    parts: &Parts,
    device: &B::Device,
    depth: usize,
) -> anyhow::Result<Llava<B>> {
    let mut model = initial_model_at(&read_config(dir)?, parts, device, depth)?;
    // What was trained in half precision runs in f32 where the backend has nothing else.
    if !B::supports_dtype(device, model.config.dtype.float().into()) {
        model.config.dtype = Dtype::Float32;
    }
    Ok(load_trained(model, dir)?.0)
}
