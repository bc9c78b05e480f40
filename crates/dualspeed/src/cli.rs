//! The command line: arguments, exit codes, and the entry point that other crates extend.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::backend::BackendChoice;
use crate::commands;
use crate::extensions::Extensions;

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
    /// Answer a question about an image with a run's model.
    Generate(GenerateArgs),
    /// Show which visual tokens pruners keep, side by side; or run them on given features, or time them.
    Prune(PruneArgs),
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
    /// Start from the model that another run ended with (stage 2 after stage 1).
    #[arg(long, value_name = "DIR")]
    pub init_from: Option<PathBuf>,
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

/// Arguments of `generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    /// The run directory.
    #[arg(long)]
    pub run: PathBuf,
    /// The picture (PNG, JPEG, WebP, GIF, BMP).
    #[arg(long)]
    pub image: Option<PathBuf>,
    /// The question.
    #[arg(long)]
    pub prompt: String,
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
    /// Keep only N visual tokens, chosen by the run's pruner.
    #[arg(long, value_name = "N")]
    pub keep: Option<usize>,
    /// With --keep: prefix the mode isolator as in training.
    #[arg(long, requires = "keep")]
    pub isolator: bool,
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
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
