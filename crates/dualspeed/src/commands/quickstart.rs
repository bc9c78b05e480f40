//! `dualspeed quickstart`.

use dualspeed_ops::AutodiffBackend;

use super::{Outcome, interrupt_flag};
use crate::cli::{Cli, QuickstartArgs};
use crate::extensions::Extensions;
use crate::quickstart::{Options, conclusion, config, run as quickstart};

pub fn run<B: AutodiffBackend, E: Extensions>(
    cli: &Cli,
    args: &QuickstartArgs,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    if args.print_config {
        print!("{}", config(0, &[], &args.overrides)?.to_toml()?);
        return Ok(Outcome::Done);
    }
    let options = Options {
        out: args.out.clone(),
        seeds: args.seeds,
        overwrite: args.overwrite,
        overrides: args.overrides.clone(),
        backend: cli.backend.name(),
        progress: !cli.quiet,
        interrupt: interrupt_flag()?,
    };
    let summary = quickstart::<B, E>(device, &options)?;
    println!("{}", conclusion(&summary, &args.out));
    Ok(Outcome::Done)
}
