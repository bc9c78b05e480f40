//! `dualspeed generate`: answers, one or many.

mod batch;
mod output;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::{Args, ValueEnum};
use dualspeed_model::Parts;
use dualspeed_model::{GenerateOptions, PrunerSpec, TextTower, View};
use dualspeed_ops::Backend;

use super::checkpoint_args::CheckpointArgs;
use super::global_args::GlobalArgs;
use super::image_args::ImageArgs;
use crate::clip::ClipTextTower;
use crate::extensions::{Extensions, registry, sources};
use crate::output::{note, print, print_line};
use crate::pipeline::{GenerationRequest, GenerationSettings, Pipeline};
use crate::run_dir;
use batch::answer_all;
use output::OutputLine;

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The run directory, or one checkpoint in it.
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    run: Option<PathBuf>,
    /// A checkpoint: a directory in transformers', LLaVA's or peft's layout, a GGUF file, or a name on the hub.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// How the checkpoint is read.
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    /// The picture (PNG, JPEG, WebP, GIF, BMP); repeat it for several.
    #[arg(long)]
    image: Vec<PathBuf>,
    /// How pictures are read.
    #[command(flatten)]
    images: ImageArgs,
    /// The question; `<image>` in it says where pictures stand.
    #[arg(long, required_unless_present = "batch")]
    prompt: Option<String>,
    /// Answer every line of a JSONL file: {"id": .., "image": .., "prompt": ..}, or LLaVA's {"question_id": .., "image": ..,
    /// "text": ..}; prints JSONL. A line that cannot be answered is named and left out, and the exit code is then 1.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "image"])]
    batch: Option<PathBuf>,
    /// Print JSON with token ids and log-probabilities.
    #[arg(long)]
    json: bool,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = 32)]
    max_new_tokens: usize,
    /// 0 picks the most likely token; higher samples more freely.
    #[arg(long, default_value_t = 0.0)]
    temperature: f64,
    /// Sample among the most likely tokens that make up this share of the probability.
    #[arg(long, default_value_t = 1.0)]
    top_p: f64,
    /// The seed of sampling.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Keep only N visual tokens.
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// With --keep: which tokens; the run's pruner by default, else divprune.
    #[arg(long, requires = "keep")]
    pruner: Option<String>,
    /// With --keep: prefix the mode isolator as in training.
    #[arg(long, requires = "keep", num_args = 0..=1, default_missing_value = "on")]
    isolator: Option<Switch>,
}

/// The value of a flag that is on or off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

pub(crate) fn run<B: Backend, E: Extensions>(
    args: &GenerateArgs,
    global: &GlobalArgs,
    parts: &Parts,
    device: &B::Device,
) -> anyhow::Result<()> {
    let (mut pipeline, trained_pruner) = load::<B, E>(args, global, parts, device)?;
    pipeline.processor.loading = args.images.apply(pipeline.processor.loading)?;
    let spec = match &args.pruner {
        Some(name) => Some(name.parse()?),
        None => trained_pruner.or_else(|| args.keep.map(|_| PrunerSpec::default())),
    };
    let mut registry = registry::<B, E>(device);
    if let Some(dir) = &args.checkpoint.clip {
        let options = args.checkpoint.options(global)?.load;
        let tower: Arc<dyn TextTower<B>> = Arc::new(ClipTextTower::open(dir, &options, device)?);
        registry = registry.with_text_tower(move || Ok(tower.clone()));
    }
    let pruner = spec.map(|spec| registry.build(&spec)).transpose()?;
    let settings = GenerationSettings {
        view: match args.keep {
            Some(keep) => View::Pruned { keep, isolator: args.isolator == Some(Switch::On) },
            None => View::Full,
        },
        pruner: pruner.as_deref(),
        options: GenerateOptions {
            max_new_tokens: args.max_new_tokens,
            temperature: args.temperature,
            top_p: args.top_p,
            eos_token_ids: Vec::new(),
            seed: args.seed,
        },
    };
    match &args.batch {
        Some(path) => answer_all(&pipeline, path, &settings, device),
        None => generate_one(&pipeline, args, &settings, device),
    }
}

/// The model of `--run`, with the pruner that it was trained with, or of `--model`.
fn load<B: Backend, E: Extensions>(
    args: &GenerateArgs,
    global: &GlobalArgs,
    parts: &Parts,
    device: &B::Device,
) -> anyhow::Result<(Pipeline<B>, Option<PrunerSpec>)> {
    let path = match (&args.run, &args.model) {
        (Some(dir), _) => {
            let pipeline = Pipeline::from_run(dir, parts, &sources::<E>(), device)?;
            return Ok((pipeline, Some(run_dir::read_config(dir)?.pruner())));
        }
        (None, Some(path)) => path,
        (None, None) => anyhow::bail!("give --run DIR or --model PATH"),
    };
    let options = args.checkpoint.options(global)?;
    let (pipeline, report) = Pipeline::from_checkpoint(path, &options, parts, device)?;
    if !global.quiet {
        note(format_args!(
            "read {} tensors, {:.2} GB in {:.1} s ({:.2} GB/s)",
            report.loaded.tensors,
            report.loaded.bytes as f64 / 1e9,
            report.elapsed.as_secs_f64(),
            report.gigabytes_per_second()
        ));
    }
    Ok((pipeline, None))
}

/// Answers `--prompt`; the text appears as it is generated, unless it is wanted as JSON.
fn generate_one<B: Backend>(
    pipeline: &Pipeline<B>,
    args: &GenerateArgs,
    settings: &GenerationSettings<'_, B>,
    device: &B::Device,
) -> anyhow::Result<()> {
    let prompt = args.prompt.clone().context("give --prompt TEXT, or --batch FILE")?;
    let request = GenerationRequest { prompt, images: args.image.clone() };
    // The first failure is the one to report.
    let mut printed = Ok(());
    let mut on_text = |text: &str| {
        if !args.json && printed.is_ok() {
            printed = print(text);
        }
    };
    let output = pipeline.generate(&request, settings, device, &mut on_text)?;
    printed?;
    match args.json {
        true => print_line(serde_json::to_string(&OutputLine::new(&request.prompt, &output))?),
        false => print("\n"),
    }
}
