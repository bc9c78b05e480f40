//! Our models in other people's formats: a PEFT adapter, transformers' LLaVA, LLaVA's own layout.
//!
//! Importing what was exported gives identical logits; `transformers` and `peft` load it too (`scripts/fixtures/
//! check_export.py`). What they have no place for goes into files of its own beside the rest, which importing reads back:
//! the mode isolator into `mode_isolator.safetensors`, the tower's projection into the space shared with text into
//! `visual_projection.safetensors`. A vision tower that transformers' LLaVA does not know is written in its layout all the
//! same; then only this reads it back.

mod collect;
mod config;
pub mod names;
mod write;

use std::collections::BTreeMap;
use std::path::Path;

use dualspeed_ops::Backend;
use serde_json::json;

use self::collect::{Pending, collect};
use self::names::{Layout, key_of, peft_key, tower_key};
use self::write::{make_dir, write_file, write_json, write_shards};
use crate::config::ProjectorType;
use crate::error::ModelError;
use crate::formats::import::tensor::FloatType;
use crate::formats::{ISOLATOR, PROJECTION};
use crate::vlm::Llava;

pub use self::config::Tokens;

/// The vision tower's directory in LLaVA's own layout.
const TOWER: &str = "vision_tower";

/// How a model is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// What weights become; their own type by default.
    pub dtype: Option<FloatType>,
    /// Bytes of a shard, about.
    pub shard: usize,
    /// Ids that the configuration names.
    pub tokens: Tokens,
}

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
            config::original(&model.config, vit, &options.tokens, dtype, TOWER)
        }
        _ => config::transformers(&model.config, &options.tokens, dtype),
    };
    write_json(&dir.join("config.json"), &json)?;
    let Tokens { bos, eos, pad, .. } = options.tokens;
    let generation = json!({ "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad });
    write_json(&dir.join("generation_config.json"), &generation)?;
    write_isolator(model, dir)
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
    write_isolator(model, dir)
}

/// What most of the weights are written as.
fn commonest<'a>(tensors: impl Iterator<Item = &'a Pending<'static>>) -> FloatType {
    let mut bytes: BTreeMap<FloatType, usize> = BTreeMap::new();
    for tensor in tensors {
        *bytes.entry(tensor.dtype()).or_default() += tensor.bytes();
    }
    bytes.into_iter().max_by_key(|(_, bytes)| *bytes).map_or(FloatType::F32, |(dtype, _)| dtype)
}

fn write_isolator<B: Backend>(model: &Llava<B>, dir: &Path) -> Result<(), ModelError> {
    let isolator = collect::<B, _>(&model.mode_isolator, "mode_isolator", Some(FloatType::F32));
    if isolator.values().all(|tensor| tensor.shape().is_empty()) {
        return Ok(());
    }
    write_file(&dir.join(ISOLATOR), &isolator)
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
