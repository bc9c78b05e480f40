//! The contents of a report on a checkpoint or a run.

use std::collections::BTreeMap;

use dualspeed_model::import::Architecture;
use dualspeed_model::memory::{self, MemoryEstimate, Workload};
use dualspeed_model::{DecoderConfig, LlavaConfig, Trainable};
use serde::Serialize;

use super::InspectArgs;
use super::describe::{describe_llama, describe_llava, describe_vit};
use crate::checkpoint::OpenedCheckpoint;
use crate::commands::global_args::GlobalArgs;
use crate::output::note;
use crate::run_dir;

/// A checkpoint's architecture, its numbers of parameters by part and by element type, and its memory.
#[derive(Debug, Serialize)]
pub(super) struct InspectReport {
    pub(super) path: String,
    pub(super) architecture: String,
    pub(super) parameters: BTreeMap<String, u64>,
    pub(super) dtypes: BTreeMap<String, u64>,
    pub(super) trainable: BTreeMap<String, u64>,
    pub(super) memory: MemoryReport,
}

/// Estimated bytes on the device for `batch` samples of `sequence` tokens.
#[derive(Debug, Serialize)]
pub(super) struct MemoryReport {
    pub(super) batch: usize,
    pub(super) sequence: usize,
    pub(super) weights: u64,
    pub(super) key_value_cache: u64,
    /// `None` for what is not trained here: a decoder or a tower alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) training: Option<MemoryEstimate>,
}

/// The report on a run, from its configuration.
///
/// # Errors
/// If the configuration cannot be read.
pub(super) fn of_run(args: &InspectArgs) -> anyhow::Result<InspectReport> {
    let config = run_dir::read_config(&args.path)?;
    let model = &config.model;
    let parameters = llava_parameters(model);
    let total = parameters.values().sum();
    let dtypes = BTreeMap::from([("F32".to_owned(), total)]);
    Ok(report(args, describe_llava(model), parameters, dtypes, &model.text, Some(model)))
}

/// The report on a checkpoint, from its configuration and the headers of its weights.
///
/// # Errors
/// What is missing or damaged, by file.
pub(super) fn of_checkpoint(
    args: &InspectArgs,
    global: &GlobalArgs,
) -> anyhow::Result<InspectReport> {
    let load = args.checkpoint.options(global)?.load;
    let opened = OpenedCheckpoint::open(&args.path, &load, !global.quiet)?;
    for line in opened.notes() {
        note(format_args!("{line}"));
    }
    let checkpoint = &opened.checkpoint;
    let (mut parameters, mut dtypes) = (BTreeMap::new(), BTreeMap::new());
    for (path, info) in checkpoint.weights().tensors() {
        let count = info.shape.iter().map(|side| *side as u64).product::<u64>();
        let part = path.split('.').next().unwrap_or(path).to_owned();
        *parameters.entry(part).or_default() += count;
        *dtypes.entry(info.dtype.clone()).or_default() += count;
    }
    let (architecture, text, llava) = match &checkpoint.config.architecture {
        Architecture::Llava(config) => {
            (describe_llava(config), config.text.clone(), Some((**config).clone()))
        }
        Architecture::Decoder(config) => (describe_llama(config), config.clone(), None),
        Architecture::Clip(config) => (
            describe_vit(config),
            DecoderConfig { num_hidden_layers: 0, ..DecoderConfig::default() },
            None,
        ),
    };
    if llava.as_ref().is_some_and(|config| config.lora.is_some()) {
        let whole = llava.as_ref().map(memory::parameters).unwrap_or_default();
        parameters.insert("lora".into(), whole[4]);
    }
    Ok(report(args, architecture, parameters, dtypes, &text, llava.as_ref()))
}

/// Adds the memory estimate, and what stage 2 would train, to the counts of parameters.
fn report(
    args: &InspectArgs,
    architecture: String,
    parameters: BTreeMap<String, u64>,
    dtypes: BTreeMap<String, u64>,
    text: &DecoderConfig,
    llava: Option<&LlavaConfig>,
) -> InspectReport {
    let visual = llava.map_or(0, |config| args.keep.unwrap_or(config.num_visual_tokens()));
    let isolator = llava.map_or(0, |config| config.isolator_length);
    let extra = if args.keep.is_some() { isolator } else { 0 };
    let sequence = visual + extra + args.text_tokens;
    let tokens = (args.batch * sequence) as u64;
    let mut trainable = BTreeMap::new();
    let lora = llava.and_then(|config| config.lora.as_ref());
    let trained: &[&str] = match (llava, lora) {
        (None, _) => &["language_model"],
        (Some(_), Some(_)) => &["mm_projector", "image_newline", "mode_isolator", "lora"],
        (Some(_), None) => &["mm_projector", "image_newline", "mode_isolator", "language_model"],
    };
    for part in trained {
        if let Some(count) = parameters.get(*part) {
            trainable.insert((*part).to_owned(), *count);
        }
    }
    let width = match dtypes.iter().max_by_key(|(_, count)| **count) {
        Some((dtype, _)) if dtype != "F32" => 2,
        _ => 4,
    };
    let total: u64 = parameters.values().sum();
    let kv = (2 * text.num_hidden_layers * text.kv_heads() * text.head_size()) as u64;
    let training = llava.map(|config| {
        let trainable = match config.lora {
            Some(_) => Trainable::finetune_lora(),
            None => Trainable::full(),
        };
        let workload = Workload {
            batch: args.batch,
            length: sequence,
            images: args.batch,
            trainable,
            frozen_bytes: width,
            activation_bytes: width,
        };
        memory::estimate(config, &workload, None)
    });
    InspectReport {
        path: args.path.display().to_string(),
        architecture,
        memory: MemoryReport {
            batch: args.batch,
            sequence,
            weights: total * width as u64,
            key_value_cache: tokens * kv * width as u64,
            training,
        },
        parameters,
        dtypes,
        trainable,
    }
}

/// Parameters of each part of a model with vision, from its configuration.
fn llava_parameters(config: &LlavaConfig) -> BTreeMap<String, u64> {
    let names = ["vision_tower", "mm_projector", "mode_isolator", "language_model", "lora"];
    let sizes = names.into_iter().zip(memory::parameters(config));
    sizes.filter(|(_, n)| *n > 0).map(|(part, n)| (part.to_owned(), n)).collect()
}
