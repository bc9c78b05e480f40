//! `dualspeed data`: what a data set is like before a run is spent on it.

mod check;
mod page;
mod text;

use clap::{Args, Subcommand};
use dualspeed_ops::AutodiffBackend;

pub(crate) use check::check_source;
pub(crate) use text::report_text;

use super::global_args::GlobalArgs;
use crate::extensions::Extensions;

/// Arguments of `data`.
#[derive(Debug, Args)]
pub(crate) struct DataArgs {
    #[command(subcommand)]
    command: DataCommand,
}

/// What is done with a data set.
#[derive(Debug, Subcommand)]
enum DataCommand {
    /// Check every record: images, roles, lengths in both views, token ids, duplicates. Exit code 0: all of it can be used;
    /// 1: something cannot.
    Check(check::CheckArgs),
}

pub(crate) fn run<B: AutodiffBackend, E: Extensions>(
    args: &DataArgs,
    global: &GlobalArgs,
    device: &B::Device,
) -> anyhow::Result<()> {
    match &args.command {
        DataCommand::Check(args) => check::run::<B, E>(args, global, device),
    }
}
