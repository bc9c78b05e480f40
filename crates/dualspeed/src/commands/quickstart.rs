//! `dualspeed quickstart`: three models trained, compared and reported.

use std::path::PathBuf;

use clap::Args;
use dualspeed_ops::AutodiffBackend;

use super::global_args::GlobalArgs;
use crate::extensions::Extensions;
use crate::interrupt::interrupt_flag;
use crate::output::{print, say};
use crate::quickstart::{self, QuickstartOptions, conclusion, recipe_config};

/// Arguments of `quickstart`.
#[derive(Debug, Args)]
pub(crate) struct QuickstartArgs {
    /// Number of seeds; the table then shows mean and standard deviation.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
    seeds: u64,
    /// Where to write the report and the runs.
    #[arg(long, default_value = "runs/quickstart")]
    out: PathBuf,
    /// Replace what an earlier quickstart wrote there.
    #[arg(long)]
    overwrite: bool,
    /// Override a key of the recipe, e.g. `--set steps=20` (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Print the recipe (TOML) and stop.
    #[arg(long)]
    print_config: bool,
}

pub(crate) fn run<B: AutodiffBackend, E: Extensions>(
    args: &QuickstartArgs,
    global: &GlobalArgs,
    device: &B::Device,
) -> anyhow::Result<()> {
    if args.print_config {
        return print(&recipe_config(0, &[], &args.overrides)?.to_toml()?);
    }
    let options = QuickstartOptions {
        out: args.out.clone(),
        seeds: args.seeds,
        overwrite: args.overwrite,
        overrides: args.overrides.clone(),
        backend: global.backend.name(),
        progress: !global.quiet,
        interrupt: interrupt_flag()?,
    };
    let summary = quickstart::run::<B, E>(device, &options)?;
    say(format_args!("{}", conclusion(&summary, &args.out)));
    Ok(())
}
