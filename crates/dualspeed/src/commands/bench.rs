//! `dualspeed bench`: times of whole training steps.

use dualspeed_model::Dtype;
use dualspeed_ops::AutodiffBackend;

use super::{Outcome, refuse_existing};
use crate::bench::steps::{self, StepOptions};
use crate::bench::{BenchReport, Size};
use crate::cli::{BenchArgs, Cli};

pub fn run<B: AutodiffBackend>(
    cli: &Cli,
    args: &BenchArgs,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    if let Some(path) = &args.json {
        refuse_existing(path, args.overwrite)?;
    }
    let known = || steps::CASES.iter().map(|case| case.name);
    for name in &args.case {
        let names: Vec<&str> = known().collect();
        anyhow::ensure!(
            names.contains(&name.as_str()),
            "unknown case `{name}`; known: {}",
            names.join("; ")
        );
    }
    // Half precision where the backend has it: that is what runs of these sizes use.
    let dtype = match B::supports_dtype(device, Dtype::BFloat16.float().into()) {
        true => Dtype::BFloat16,
        false => Dtype::Float32,
    };
    let options = StepOptions {
        size: args.size,
        dtype: if args.size == Size::Tiny { Dtype::Float32 } else { dtype },
        warmup: args.warmup,
        steps: args.steps,
        overrides: args.overrides.clone(),
    };
    println!(
        "{:<22} {:>9} {:>8} {:>10} {:>10} {:>9} {:>8} {:>9} {:>8}",
        "step", "ms", "spread", "samples/s", "tokens/s", "TFLOP/s", "GiB", "first, s", "twice"
    );
    let mut rows = Vec::new();
    for case in &steps::CASES {
        if !args.case.is_empty() && !args.case.iter().any(|name| name == case.name) {
            continue;
        }
        let row = steps::run::<B>(case, &options, device)?;
        let memory = row.memory_gib.map_or("-".into(), |gib| format!("{gib:.1}"));
        println!(
            "{:<22} {:>9.1} {:>8.1} {:>10.1} {:>10.0} {:>9.1} {:>8} {:>9.1} {:>8}",
            row.name,
            row.step_ms,
            row.spread_ms,
            row.samples_per_s,
            row.tokens_per_s,
            row.tflops_4n,
            memory,
            row.first_step_s,
            row.recomputed_blocks
        );
        if !cli.quiet {
            let parts: Vec<String> =
                row.parts_ms.iter().map(|(name, ms)| format!("{name} {ms:.1}")).collect();
            println!("    {} ms", parts.join(", "));
        }
        rows.push(row);
        B::memory_cleanup(device);
    }
    if let Some(path) = &args.json {
        let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
        let device = format!("{} {device:?}", B::name(device));
        let size = args.size.name();
        BenchReport { device, command: format!("dualspeed {command}"), size, rows }.write(path)?;
    }
    Ok(Outcome::Done)
}
