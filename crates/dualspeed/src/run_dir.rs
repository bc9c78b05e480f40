//! Run directories: the configuration, the model that a run started from, and the model that it ended with.

use std::path::{Path, PathBuf};

use anyhow::Context;
use dualspeed_data::ExampleSource;
use dualspeed_model::import::{Architecture, Checkpoint, FloatType, LoadOptions};
use dualspeed_model::{AnyresConfig, Dtype, Llava, LlavaConfig, Parts, VisionConfig};
use dualspeed_ops::Backend;
use dualspeed_train::origins::VALID_DATA;
use dualspeed_train::{
    Origin, Origins, TrainConfig, TrainError, check_format, load_trained, run_and_step,
};

use crate::base_text::adopt_text;
use crate::embedded_tower;
use crate::origins::{of_checkpoint, of_embedded_tower, of_run};

/// Runs that start from one another at most; a longer chain is a circle, as stages are two or three.
const MAX_CHAIN: usize = 16;

/// The run directory that `dir` is, or is a checkpoint of.
fn run_of(dir: &Path) -> &Path {
    run_and_step(dir).map_or(dir, |(run, _)| run)
}

/// Reads the configuration that the run in `dir` was made with; `dir` may also be one of its checkpoints.
///
/// # Errors
/// If `dir` is no run directory, or one of another version.
pub fn read_config(dir: &Path) -> anyhow::Result<TrainConfig> {
    let path = run_of(dir).join("config.toml");
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
    let run = run_of(dir);
    check_format(run)?;
    Ok(TrainConfig::load(&run.join("config.toml"), &[])?)
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
            Some(dir) if run_of(&dir).join("config.toml").is_file() => {
                from = own_config(&dir)?.init_from;
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// The model of the published checkpoint in `dir` with the isolator and adapters of `config`, and what it was read from.
fn model_from_checkpoint<B: Backend>(
    config: &TrainConfig,
    dir: &Path,
    device: &B::Device,
) -> anyhow::Result<(Llava<B>, Origins)> {
    let dtype = match config.model.dtype {
        Dtype::Float32 => FloatType::F32,
        Dtype::BFloat16 => FloatType::Bf16,
        Dtype::Float16 => FloatType::F16,
    };
    let options = LoadOptions { dtype: Some(dtype), ..LoadOptions::default() };
    let checkpoint = Checkpoint::open(dir, &options)?;
    let (mut model, _) = checkpoint.load_llava::<B>(&options, device)?;
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
    Ok((model, of_checkpoint(&checkpoint)?))
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
    Ok(initial_model_with_origins(config, parts, device)?.0)
}

/// As [`initial_model`], with what the weights were read from: what a run that starts from them records.
///
/// # Errors
/// As [`initial_model`]; also if a file cannot be hashed.
pub fn initial_model_with_origins<B: Backend>(
    config: &TrainConfig,
    parts: &Parts,
    device: &B::Device,
) -> anyhow::Result<(Llava<B>, Origins)> {
    initial_model_at(config, parts, device, 0)
}

fn initial_model_at<B: Backend>(
    config: &TrainConfig,
    parts: &Parts,
    device: &B::Device,
    depth: usize,
) -> anyhow::Result<(Llava<B>, Origins)> {
    anyhow::ensure!(depth < MAX_CHAIN, "the runs' init_from lead in a circle");
    let Some(run) = &config.init_from else {
        let model = config.model.init_with::<B>(parts, device, config.seed)?;
        return match &config.model.vision {
            // A tower of another crate brings its own weights.
            VisionConfig::Custom(_) => Ok((model, Origins::default())),
            vision => {
                let tower = embedded_tower::load(vision, device)?;
                Ok((model.with_vision_tower(tower)?, of_embedded_tower()))
            }
        };
    };
    if is_checkpoint(run) {
        return model_from_checkpoint(config, run, device);
    }
    let earlier = read_config(run).with_context(|| {
        format!(
            "cannot start from {} (`init_from`); if it was moved, name its place: `train --resume RUN --init-from DIR`, or \
             init_from in the run's config.toml",
            run.display()
        )
    })?;
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
    let (mut model, step) = load_model_at::<B>(run, parts, device, depth + 1)?;
    let origins = of_run(run_of(run), step)?;
    model.config.max_length = config.model.max_length;
    model.config.pad_to_multiple = config.model.pad_to_multiple;
    match (&config.model.lora, &earlier.model.lora) {
        (Some(lora), None) => Ok((model.with_lora(lora, device, config.seed)?, origins)),
        (wanted, found) if wanted == found => Ok((model, origins)),
        _ => anyhow::bail!(
            "the run {} has adapters that [model.lora] here does not describe; copy that section from its config.toml",
            run.display()
        ),
    }
}

/// Loads the model that the run in `dir` ended with, or the newest checkpoint of one that has not ended. A checkpoint that
/// is damaged is named in a warning, and the one before it loaded. `dir` may also be one checkpoint of a run.
///
/// # Errors
/// If `dir` is no run directory, no checkpoint of it is whole, or what the run started from is no longer what it was: the
/// model would be another.
pub fn load_model<B: Backend>(
    dir: &Path,
    parts: &Parts,
    device: &B::Device,
) -> anyhow::Result<Llava<B>> {
    Ok(load_model_at(dir, parts, device, 0)?.0)
}

/// Warns if the validation data of the run in `dir` is no longer what the run was validated on: numbers on the two do not
/// compare.
///
/// # Errors
/// If the record of it cannot be read.
pub(crate) fn warn_of_other_data(dir: &Path, source: &dyn ExampleSource) -> Result<(), TrainError> {
    let now = Origin::of(None, "fingerprint", source.fingerprint());
    let recorded =
        Origins::read(run_of(dir))?.and_then(|recorded| recorded.get(VALID_DATA).cloned());
    if recorded.is_some_and(|recorded| recorded.content != now.content) {
        tracing::warn!(
            "data.valid is not what {} was validated on: its results here and in validation.jsonl do not compare",
            dir.display()
        );
    }
    Ok(())
}

/// The model of a run, and the optimiser steps it has been trained for.
fn load_model_at<B: Backend>(
    dir: &Path,
    parts: &Parts,
    device: &B::Device,
    depth: usize,
) -> anyhow::Result<(Llava<B>, u64)> {
    let config = read_config(dir)?;
    let (mut model, mut origins) = initial_model_at(&config, parts, device, depth)?;
    // The text of an earlier stage is not that of this one.
    if depth == 0 {
        origins = origins.with_tokenizers(&config)?;
    }
    let run = run_of(dir);
    if let Some(recorded) = Origins::read(run)? {
        recorded.check(&origins, run)?;
    }
    // What was trained in half precision runs in f32 where the backend has nothing else.
    if !B::supports_dtype(device, model.config.dtype.float().into()) {
        model.config.dtype = Dtype::Float32;
    }
    Ok(load_trained(model, dir)?)
}
