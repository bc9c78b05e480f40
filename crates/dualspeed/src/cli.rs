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
    /// Show which visual tokens a pruner keeps: pruned patches are dimmed.
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
    #[arg(long)]
    pub image: PathBuf,
    /// The pruner's name; `--pruner help` lists them.
    #[arg(long, default_value = "divprune")]
    pub pruner: String,
    /// How many visual tokens to keep.
    #[arg(long)]
    pub keep: usize,
    /// The PNG to write.
    #[arg(long)]
    pub out: PathBuf,
    /// A run whose projector to use; without it, pruners see the embedded tower's features.
    #[arg(long)]
    pub run: Option<PathBuf>,
    /// Replace the PNG if it exists.
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
