//! Run directories: the configuration, the model that a run started from, and the model that it ended with.

use std::path::{Path, PathBuf};

use anyhow::Context;
use dualspeed_data::ExampleSource;
use dualspeed_model::import::{AnyModel, Architecture, FloatType, LoadOptions, NewProjector};
use dualspeed_model::{
    AnyresConfig, Dtype, Llava, LlavaConfig, LoraConfig, Parts, VisionConfig, require_dtype,
};
use dualspeed_ops::Backend;
use dualspeed_train::config::InitConfig;
use dualspeed_train::origins::VALID_DATA;
use dualspeed_train::{
    Origin, Origins, TrainConfig, TrainError, check_format, load_trained, run_and_step,
};

use crate::base_text::adopt_text;
use crate::checkpoint::{self, OpenedCheckpoint};
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

/// Whether a path is a published checkpoint, or an adapter's or parts' directory that belongs on one, not a run.
pub fn is_checkpoint(path: &Path) -> bool {
    !path.join("config.toml").is_file() && checkpoint::is_checkpoint(path)
}

/// Replaces the architecture in `config` by that of the published checkpoint that the run starts from, itself or through
/// the runs that `init_from` leads to; without such a checkpoint nothing changes.
///
/// The adapters of the checkpoint that `init_from` itself names become `model.lora`, where the configuration has none. Isolator,
/// lengths, precision and what becomes of newlines and positions after pruning stay as configured. Generated scenes are then in the
/// words of the checkpoint's tokenizer. Conversations from disk are written out, tokenized, and their pictures fitted, as the
/// checkpoint has it, unless the configuration says otherwise; what was taken is told in the lines that are returned.
///
/// # Errors
/// If the checkpoint cannot be read or is no LLaVA, or has an isolator or adapters of another size than the configuration.
pub fn adopt_base_checkpoint(config: &mut TrainConfig) -> anyhow::Result<Vec<String>> {
    let Some((dir, init)) = resolve_base_checkpoint(config)? else { return Ok(Vec::new()) };
    let opened = open_base(config, &dir, &init, None)?;
    let tokenizer = opened.base.join("tokenizer.json");
    for data in [Some(&mut config.data.train), config.data.valid.as_mut()].into_iter().flatten() {
        if data.llava_json.is_none() && data.tokenizer.is_none() && tokenizer.is_file() {
            data.tokenizer = Some(tokenizer.clone());
        }
    }
    let mut notes = adopt_text(config, &opened)?;
    let Architecture::Llava(base) = &opened.checkpoint.config.architecture else {
        anyhow::bail!(
            "{} is no LLaVA; training starts from a model with vision, or from a language model with --vision-tower DIR",
            dir.display()
        )
    };
    notes.extend(opened.notes());
    let first = config.init_from.as_ref() == Some(&dir);
    let model = &mut config.model;
    let newline = model.anyres.as_ref().map(|anyres| anyres.newline).unwrap_or_default();
    model.anyres = base.anyres.clone().map(|anyres| AnyresConfig { newline, ..anyres });
    model.vision = base.vision.clone();
    model.text = base.text.clone();
    model.mm_projector_type = base.mm_projector_type.clone();
    if first {
        notes.extend(adopt_lora(model, base, &dir)?);
        let (found, wanted) = (base.isolator_length, model.isolator_length);
        anyhow::ensure!(
            found == 0 || wanted == 0 || found == wanted,
            "the mode isolator of {} has {found} rows, model.isolator_length is {wanted}; set it to {found} to go on with that \
             isolator, or to 0 to leave it out",
            dir.display()
        );
    }
    model.validate()?;
    Ok(notes)
}

/// [`adopt_base_checkpoint`] for a model that is used as it is: its isolator and its adapters become those of `config` too.
///
/// # Errors
/// As [`adopt_base_checkpoint`].
pub fn adopt_whole_checkpoint(config: &mut TrainConfig) -> anyhow::Result<Vec<String>> {
    if let Some((dir, init)) = resolve_base_checkpoint(config)? {
        let opened = open_base(config, &dir, &init, None)?;
        if let Architecture::Llava(base) = &opened.checkpoint.config.architecture {
            config.model.isolator_length = base.isolator_length;
            config.model.lora = base.lora.clone();
        }
    }
    adopt_base_checkpoint(config)
}

/// Takes over the adapters of a checkpoint, or checks that the configured ones are the same but for their dropout. A configuration that
/// leaves `targets` out means those that there are.
fn adopt_lora(
    model: &mut LlavaConfig,
    base: &LlavaConfig,
    dir: &Path,
) -> anyhow::Result<Option<String>> {
    let Some(found) = &base.lora else { return Ok(None) };
    let names = |lora: &LoraConfig| {
        lora.targets.iter().map(|target| target.name()).collect::<Vec<_>>().join(", ")
    };
    let Some(wanted) = &mut model.lora else {
        let note = format!(
            "model.lora: r = {}, alpha = {}, as in {}",
            found.r,
            found.alpha,
            dir.display()
        );
        model.lora = Some(found.clone());
        return Ok(Some(note));
    };
    let mut note = None;
    if wanted.targets == LoraConfig::default().targets && wanted.targets != found.targets {
        note = Some(format!("model.lora.targets: {}, as in {}", names(found), dir.display()));
        wanted.targets = found.targets.clone();
    }
    let same = LoraConfig { dropout: found.dropout, ..wanted.clone() };
    anyhow::ensure!(
        same == *found,
        "the adapters of {} have r = {}, alpha = {} on {}; [model.lora] says r = {}, alpha = {} on {}: leave [model.lora] out to train \
         those on, or fold them first, `dualspeed export --format hf`",
        dir.display(),
        found.r,
        found.alpha,
        names(found),
        wanted.r,
        wanted.alpha,
        names(wanted)
    );
    Ok(note)
}

/// The published checkpoint that `config.init_from` names, or that the first of the runs it leads to started from, and what is put on it.
fn resolve_base_checkpoint(config: &TrainConfig) -> anyhow::Result<Option<(PathBuf, InitConfig)>> {
    let (mut from, mut init) = (config.init_from.clone(), config.init.clone());
    for _ in 0..MAX_CHAIN {
        match from {
            Some(dir) if is_checkpoint(&dir) => return Ok(Some((dir, init))),
            Some(dir) if run_of(&dir).join("config.toml").is_file() => {
                let earlier = own_config(&dir)?;
                (from, init) = (earlier.init_from, earlier.init);
            }
            _ => return Ok(None),
        }
    }
    Ok(None)
}

/// Opens the published checkpoint in `dir` with what `init` puts on it. A language model with a vision tower gets a new projector.
fn open_base(
    config: &TrainConfig,
    dir: &Path,
    init: &InitConfig,
    dtype: Option<FloatType>,
) -> anyhow::Result<OpenedCheckpoint> {
    let kind = config.model.mm_projector_type.clone();
    let load = LoadOptions {
        dtype,
        vision_tower: init.vision_tower.clone(),
        adapter: init.adapter.clone(),
        parts: init.parts.clone(),
        new_projector: Some(NewProjector { kind, seed: config.seed }),
    };
    OpenedCheckpoint::open(dir, &load, true)
}

/// The model of the published checkpoint in `dir` with the isolator and adapters of `config`, and what it was read from.
fn model_from_checkpoint<B: Backend>(
    config: &TrainConfig,
    dir: &Path,
    parts: &Parts,
    device: &B::Device,
) -> anyhow::Result<(Llava<B>, Origins)> {
    let opened = open_base(config, dir, &config.init, Some(config.model.dtype.into()))?;
    let mut model = match opened.checkpoint.load_with::<B>(parts, &opened.load, device)?.0 {
        AnyModel::Llava(model) => *model,
        _ => {
            anyhow::bail!("{} is no LLaVA; training starts from a model with vision", dir.display())
        }
    };
    let length = config.model.isolator_length;
    if model.config.isolator_length != length {
        model = model.with_isolator_length(length, device, config.seed)?;
    }
    model = match (&config.model.lora, &model.config.lora) {
        (Some(lora), Some(_)) => model.with_lora_dropout(lora.dropout),
        (Some(lora), None) => model.with_lora(lora, device, config.seed)?,
        (None, _) => model,
    };
    anyhow::ensure!(
        model.config.text == config.model.text
            && model.config.vision == config.model.vision
            && model.config.lora == config.model.lora,
        "{} has changed since this run began; its config.json no longer says what config.toml does",
        dir.display()
    );
    model.config = config.model.clone();
    Ok((model, of_checkpoint(&opened)?))
}

/// The model that a run with this configuration starts from: fresh weights with the embedded vision tower (or one of
/// `parts`), or the model that the run `config.init_from` ended with, or the published checkpoint it names.
///
/// # Errors
/// If the tower or the earlier run does not fit the configuration; before anything is read, if the backend has no numbers of
/// `model.dtype`.
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
    require_dtype::<B>(config.model.dtype, device)?;
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
        return model_from_checkpoint(config, run, parts, device);
    }
    let earlier = read_config(run).with_context(|| {
        format!(
            "cannot start from {} (`init_from`); if it was moved, name its place: `train --resume RUN --init-from DIR`, or \
             init_from in the run's config.toml",
            run.display()
        )
    })?;
    // Adapters, lengths and precision may differ between stages, the weights' shapes may not.
    let same = LlavaConfig {
        dtype: earlier.model.dtype,
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
    let dtype = Some(config.model.dtype);
    let (mut model, step) = load_model_at::<B>(run, parts, device, depth + 1, dtype)?;
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
    Ok(load_model_at(dir, parts, device, 0, None)?.0)
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

/// The model of a run, and the optimiser steps it has been trained for; frozen weights are of type `dtype`, the run's own by default.
fn load_model_at<B: Backend>(
    dir: &Path,
    parts: &Parts,
    device: &B::Device,
    depth: usize,
    dtype: Option<Dtype>,
) -> anyhow::Result<(Llava<B>, u64)> {
    let mut config = read_config(dir)?;
    let own = config.model.dtype;
    // What was trained in half precision runs in f32 where the backend has nothing else.
    let has_own = B::supports_dtype(device, own.float().into());
    config.model.dtype = dtype.unwrap_or(if has_own { own } else { Dtype::Float32 });
    let (model, mut origins) = initial_model_at(&config, parts, device, depth)?;
    // The text of an earlier stage is not that of this one.
    if depth == 0 {
        origins = origins.with_tokenizers(&config)?;
    }
    let run = run_of(dir);
    if let Some(recorded) = Origins::read(run)? {
        recorded.check(&origins, run)?;
    }
    Ok(load_trained(model, dir)?)
}
