//! Our models in other people's formats: a PEFT adapter, transformers' LLaVA, LLaVA's own layout.
//!
//! Importing what was exported gives identical logits; `transformers` and `peft` load it too (`scripts/fixtures/
//! check_export.py`), and LLaVA's layout the published code (`scripts/check_published.py`). What transformers has no place for goes
//! into files of its own beside the rest, which importing reads back: the mode isolator into `mode_isolator.safetensors`, the tower's
//! projection into the space shared with text into `visual_projection.safetensors`. A vision tower that transformers' LLaVA does not
//! know is written in its layout all the same; then only this reads it back.
//!
//! LLaVA's layout is a full directory of the published trainer's, `mode_isolator.weight` among its keys, with the two files that
//! its stage 2 starts from beside it: `mm_projector.bin` and `mode_isolator.bin`.

mod collect;
mod config;
pub mod names;
mod options;
mod pickle;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use dualspeed_ops::Backend;
use serde_json::json;

use self::collect::{Pending, collect};
use self::names::{Layout, key_of, peft_key, stage1_key, tower_key};
use self::pickle::write_pickle;
use self::write::{make_dir, write_file, write_json, write_shards};
use crate::config::ProjectorType;
use crate::error::ModelError;
use crate::formats::import::tensor::FloatType;
use crate::formats::{ISOLATOR, ISOLATOR_BIN, PROJECTION, PROJECTOR_BIN};
use crate::vlm::Llava;

pub use self::options::{ExportOptions, TOWER, Tokens};

/// Writes a whole model, adapters folded in: weights, index, `config.json`, `generation_config.json`.
///
/// # Errors
/// [`ModelError::Weights`] names the file that could not be written; [`ModelError::Export`] if the layout has no place
/// for the model.
pub fn export_merged<B: Backend>(
    model: &Llava<B>,
    dir: &Path,
    layout: Layout,
    options: &ExportOptions,
) -> Result<(), ModelError> {
    if layout == Layout::Transformers && model.config.mm_projector_type == ProjectorType::Linear {
        let problem = "transformers' LLaVA has no projector of one layer; use the llava format";
        return Err(ModelError::Export { problem });
    }
    if matches!(model.config.mm_projector_type, ProjectorType::Custom(_)) {
        let problem = "no published format has a place for a projector of another crate";
        return Err(ModelError::Export { problem });
    }
    let text = &model.config.text;
    let flags = [text.qkv_bias, text.qk_norm, !text.nope_layers.is_empty()];
    if text.mrope_section.is_some() || flags.iter().filter(|flag| **flag).count() > 1 {
        let problem = "no layout written here has a decoder with positions of three axes, or with more than one of biases, norms \
                       of queries and keys, and layers that do not rotate";
        return Err(ModelError::Export { problem });
    }
    let vit = model.config.vision.vit();
    if layout == Layout::Original && vit.is_none() {
        let problem = "LLaVA's own layout knows vision towers of CLIP only; use the hf format";
        return Err(ModelError::Export { problem });
    }
    if layout == Layout::Original && !text.nope_layers.is_empty() {
        let problem =
            "LLaVA's own code has no decoder with layers that do not rotate; use the hf format";
        return Err(ModelError::Export { problem });
    }
    make_dir(dir)?;
    let merged = model.clone().merge_lora();
    let all = everything(&merged, options.dtype);
    let dtype = commonest(all.values());
    let mut weights = BTreeMap::new();
    let (mut tower, mut projection) = (BTreeMap::new(), BTreeMap::new());
    for (path, tensor) in all {
        if let Some(key) = key_of(&path, layout) {
            weights.insert(key, tensor);
        } else if let Some(key) = tower_key(&path) {
            tower.insert(key, tensor);
        } else if let Some(key) = path.strip_prefix("vision_tower.") {
            projection.insert(key.to_owned(), tensor);
        }
    }
    let isolator = isolator(model);
    if layout == Layout::Original {
        let named = |(path, tensor): (&String, &Pending<'static>)| {
            (format!("{path}.weight"), tensor.clone())
        };
        weights.extend(isolator.iter().map(named));
        write_stage1(model, &isolator, dir)?;
    } else if !isolator.is_empty() {
        write_file(&dir.join(ISOLATOR), &isolator)?;
    }
    write_shards(dir, &weights, options.shard)?;
    if !projection.is_empty() {
        write_file(&dir.join(PROJECTION), &projection)?;
    }
    let json = match (layout, vit) {
        (Layout::Original, Some(vit)) => {
            let tower_dir = dir.join(TOWER);
            make_dir(&tower_dir)?;
            write_shards(&tower_dir, &tower, options.shard)?;
            write_json(&tower_dir.join("config.json"), &config::vit(vit))?;
            config::original(&model.config, vit, options, dtype)
        }
        _ => config::transformers(&model.config, &options.tokens, dtype),
    };
    write_json(&dir.join("config.json"), &json)?;
    let Tokens { bos, eos, pad, .. } = options.tokens;
    let generation = json!({ "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad });
    write_json(&dir.join("generation_config.json"), &generation)
}

/// Writes adapters and projector as a PEFT adapter over the base model `base` (a directory or a name), and the isolator
/// beside them.
///
/// # Errors
/// [`ModelError::NoLora`] if the model has no adapters; [`ModelError::Weights`] names the file that could not be written.
pub fn export_adapter<B: Backend>(
    model: &Llava<B>,
    dir: &Path,
    base: &str,
) -> Result<(), ModelError> {
    let lora = model.lora.as_ref().ok_or(ModelError::NoLora)?;
    make_dir(dir)?;
    let parts = [
        collect::<B, _>(&model.lora, "lora", Some(FloatType::F32)),
        collect::<B, _>(&model.mm_projector, "mm_projector", Some(FloatType::F32)),
    ];
    let weights: BTreeMap<String, Pending<'_>> = parts
        .into_iter()
        .flatten()
        .filter_map(|(path, tensor)| Some((peft_key(&path)?, tensor)))
        .collect();
    write_file(&dir.join("adapter_model.safetensors"), &weights)?;
    write_json(&dir.join("adapter_config.json"), &config::peft(&lora.config, base))?;
    let isolator = isolator(model);
    match isolator.is_empty() {
        true => Ok(()),
        false => write_file(&dir.join(ISOLATOR), &isolator),
    }
}

/// What most of the weights are written as.
fn commonest<'a>(tensors: impl Iterator<Item = &'a Pending<'static>>) -> FloatType {
    let mut bytes: BTreeMap<FloatType, usize> = BTreeMap::new();
    for tensor in tensors {
        *bytes.entry(tensor.dtype()).or_default() += tensor.bytes();
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(FloatType::F32, |(dtype, _)| dtype)
}

/// The mode isolator in full precision, by path; nothing if there is none.
fn isolator<B: Backend>(model: &Llava<B>) -> BTreeMap<String, Pending<'static>> {
    collect::<B, _>(&model.mode_isolator, "mode_isolator", Some(FloatType::F32))
}

/// Writes the files that the published trainer's stage 2 takes, in full precision.
fn write_stage1<B: Backend>(
    model: &Llava<B>,
    isolator: &BTreeMap<String, Pending<'static>>,
    dir: &Path,
) -> Result<(), ModelError> {
    let full = Some(FloatType::F32);
    let projector = collect::<B, _>(&model.mm_projector, "mm_projector", full);
    let named = |tensors: &BTreeMap<String, Pending<'static>>| {
        let named =
            tensors.iter().filter_map(|(path, tensor)| Some((stage1_key(path)?, tensor.read())));
        named.collect::<BTreeMap<_, _>>()
    };
    write_pickle(&dir.join(PROJECTOR_BIN), &named(&projector))?;
    match isolator.is_empty() {
        true => Ok(()),
        false => write_pickle(&dir.join(ISOLATOR_BIN), &named(isolator)),
    }
}

fn everything<B: Backend>(
    model: &Llava<B>,
    dtype: Option<FloatType>,
) -> BTreeMap<String, Pending<'static>> {
    let parts = [
        collect::<B, _>(&model.vision_tower, "vision_tower", dtype),
        collect::<B, _>(&model.mm_projector, "mm_projector", dtype),
        collect::<B, _>(&model.image_newline, "image_newline", dtype),
        collect::<B, _>(&model.language_model, "language_model", dtype),
    ];
    parts.into_iter().flatten().collect()
}
