//! `dualspeed inspect`: what a checkpoint is, and what it would need, from its headers alone.

mod describe;
mod print;
mod report;

use std::path::PathBuf;

use clap::Args;

use super::checkpoint_args::CheckpointArgs;
use super::global_args::GlobalArgs;
use crate::output::{self, print_line};

/// Arguments of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A checkpoint directory, an adapter directory, a GGUF file, a name on the hub, or a run directory.
    path: PathBuf,
    /// How the checkpoint is read.
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    /// Samples per batch, for the memory estimate.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Text tokens per sample, for the memory estimate.
    #[arg(long, default_value_t = 128)]
    text_tokens: usize,
    /// Visual tokens kept per image, for the memory estimate; all by default.
    #[arg(long, value_name = "N")]
    keep: Option<usize>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(args: &InspectArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    let report = match args.path.join("config.toml").is_file() {
        true => report::of_run(args)?,
        false => report::of_checkpoint(args, global)?,
    };
    if args.json {
        print_line(serde_json::to_string_pretty(&report)?)
    } else {
        output::print(&print::text(&report)?)
    }
}
