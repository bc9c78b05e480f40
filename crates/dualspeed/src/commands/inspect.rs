//! `dualspeed inspect`: what a checkpoint is, and what it would need, from its headers alone.

use std::collections::BTreeMap;

use dualspeed_model::import::{Adapter, Architecture};
use dualspeed_model::memory::{self, MemoryEstimate, Workload};
use dualspeed_model::{LlamaConfig, LlavaConfig, Trainable, VisionConfig, VitConfig};
use serde::Serialize;

use super::Outcome;
use crate::cli::InspectArgs;
use crate::run;
use crate::speaker::{Opened, open};

/// What is printed.
#[derive(Debug, Serialize)]
struct Report {
    path: String,
    architecture: String,
    parameters: BTreeMap<String, u64>,
    dtypes: BTreeMap<String, u64>,
    trainable: BTreeMap<String, u64>,
    memory: Memory,
}

/// Estimated bytes on the device.
#[derive(Debug, Serialize)]
struct Memory {
    batch: usize,
    sequence: usize,
    weights: u64,
    key_value_cache: u64,
    /// Absent for what is not trained here: a decoder or a tower alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    training: Option<MemoryEstimate>,
}

pub fn run(args: &InspectArgs) -> anyhow::Result<Outcome> {
    let report =
        if args.path.join("config.toml").is_file() { of_run(args)? } else { of_checkpoint(args)? };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        print(&report);
    }
    Ok(Outcome::Done)
}

/// A run: its configuration says all.
fn of_run(args: &InspectArgs) -> anyhow::Result<Report> {
    let config = run::config(&args.path)?;
    let model = &config.model;
    let parameters = llava_parameters(model);
    let total = parameters.values().sum();
    let dtypes = BTreeMap::from([("F32".to_owned(), total)]);
    Ok(report(args, describe_llava(model), parameters, dtypes, &model.text, Some(model)))
}

fn of_checkpoint(args: &InspectArgs) -> anyhow::Result<Report> {
    let Opened { checkpoint, adapter, .. } = open(&args.path, &args.source.options()?)?;
    let (mut parameters, mut dtypes) = (BTreeMap::new(), BTreeMap::new());
    for (path, info) in checkpoint.weights().tensors() {
        let count = info.shape.iter().map(|side| *side as u64).product::<u64>();
        let part = path.split('.').next().unwrap_or(path).to_owned();
        *parameters.entry(part).or_default() += count;
        *dtypes.entry(info.dtype.clone()).or_default() += count;
    }
    let lora = match adapter.as_deref().or(args.source.adapter.as_deref()) {
        Some(dir) => Some(Adapter::open(dir)?.config),
        None => None,
    };
    let (architecture, text, llava) = match &checkpoint.config.architecture {
        Architecture::Llava(config) => {
            let mut config = (**config).clone();
            config.lora = lora;
            (describe_llava(&config), config.text.clone(), Some(config))
        }
        Architecture::Llama(config) => (describe_llama(config), config.clone(), None),
        Architecture::Clip(config) => (
            describe_vit(config),
            LlamaConfig { num_hidden_layers: 0, ..LlamaConfig::default() },
            None,
        ),
    };
    if llava.as_ref().is_some_and(|config| config.lora.is_some()) {
        let whole = llava.as_ref().map(memory::parameters).unwrap_or_default();
        parameters.insert("lora".into(), whole[4]);
    }
    Ok(report(args, architecture, parameters, dtypes, &text, llava.as_ref()))
}

/// Estimates, with the arithmetic in one place.
fn report(
    args: &InspectArgs,
    architecture: String,
    parameters: BTreeMap<String, u64>,
    dtypes: BTreeMap<String, u64>,
    text: &LlamaConfig,
    llava: Option<&LlavaConfig>,
) -> Report {
    let visual = llava.map_or(0, |config| args.keep.unwrap_or(config.vision.num_tokens()));
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
    Report {
        path: args.path.display().to_string(),
        architecture,
        memory: Memory {
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

fn print(report: &Report) {
    let Report { path, architecture, parameters, dtypes, trainable, memory } = report;
    println!("{path}\n{architecture}\n");
    println!("parameters");
    let total: u64 = parameters.values().sum();
    for (part, count) in parameters.iter().chain([(&"total".to_owned(), &total)]) {
        println!("  {part:<16} {:>14}", grouped(*count));
    }
    println!("element types");
    for (dtype, count) in dtypes {
        println!("  {dtype:<16} {:>14}", grouped(*count));
    }
    println!(
        "trained in stage 2{}",
        if parameters.contains_key("lora") { " (adapters)" } else { "" }
    );
    for (part, count) in trainable {
        println!("  {part:<16} {:>14}", grouped(*count));
    }
    println!(
        "memory, estimated for a batch of {} with {} tokens each",
        memory.batch, memory.sequence
    );
    let mut rows =
        vec![("weights", memory.weights), ("generating: keys and values", memory.key_value_cache)];
    if let Some(training) = &memory.training {
        rows.extend([
            ("training: weights, states", training.frozen + training.trained),
            ("training: activations", training.blocks + training.working),
            ("training: all", training.total()),
        ]);
    }
    for (what, bytes) in rows {
        println!("  {what:<30} {:>10.3} GB", bytes as f64 / 1e9);
    }
}

/// Digits in groups of three.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let (first, rest) = digits.split_at((digits.len() - 1) % 3 + 1);
    let groups = rest.as_bytes().chunks(3).map(|group| String::from_utf8_lossy(group).into_owned());
    std::iter::once(first.to_owned()).chain(groups).collect::<Vec<_>>().join(",")
}

fn describe_llava(config: &LlavaConfig) -> String {
    let tiles = match &config.anyres {
        Some(anyres) => format!(", up to {} grids of tiles", anyres.image_grid_pinpoints.len()),
        None => String::new(),
    };
    let isolator = match config.isolator_length {
        0 => "none".to_owned(),
        length => format!("{length} tokens"),
    };
    format!(
        "LLaVA{tiles}\n  vision    {}\n  projector {:?}\n  isolator  {isolator}\n  language  {}",
        match &config.vision {
            VisionConfig::Vit(config) => describe_vit(config),
            VisionConfig::EfficientNet(_) => format!(
                "EfficientNet-Lite0, block 10, width {}, {} px, {} tokens",
                config.vision.hidden_size(),
                config.vision.image_size(),
                config.vision.num_tokens()
            ),
        },
        config.mm_projector_type,
        describe_llama(&config.text)
    )
}

fn describe_vit(config: &VitConfig) -> String {
    format!(
        "CLIP ViT, {} layers, width {}, {} heads, {} px, {} tokens",
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.image_size,
        config.num_tokens()
    )
}

fn describe_llama(config: &LlamaConfig) -> String {
    format!(
        "Llama, {} layers, width {}, {} heads ({} for keys, {} wide), MLP {}, vocabulary {}, RoPE base {}{}{}",
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.kv_heads(),
        config.head_size(),
        config.intermediate_size,
        config.vocab_size,
        config.rope_theta,
        config.rope_scaling.map_or_else(String::new, |scaling| format!(" scaled ({scaling:?})")),
        if config.tie_word_embeddings { ", tied head" } else { "" }
    )
}

/// Numbers in each part, from the configuration.
fn llava_parameters(config: &LlavaConfig) -> BTreeMap<String, u64> {
    let names = ["vision_tower", "mm_projector", "mode_isolator", "language_model", "lora"];
    let sizes = names.into_iter().zip(memory::parameters(config));
    sizes.filter(|(_, n)| *n > 0).map(|(part, n)| (part.to_owned(), n)).collect()
}
