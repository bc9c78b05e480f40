//! `dualspeed bench`: times of training steps, operations and pruners, and how costs grow.

use std::path::{Path, PathBuf};

use dualspeed_model::Dtype;
use dualspeed_ops::AutodiffBackend;

use super::prune::specs;
use super::{Outcome, refuse_existing};
use crate::bench::ops::{self, OpOptions};
use crate::bench::prune::{self, PruneShapes};
use crate::bench::steps::{self, StepOptions};
use crate::bench::{BenchReport, Filter, Row, Size, Suite, growth, today};
use crate::cli::{BenchArgs, Cli};
use crate::extensions::{Extensions, registry};
use crate::run::write_atomic;

pub fn run<B: AutodiffBackend, E: Extensions>(
    cli: &Cli,
    args: &BenchArgs,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    if let (Some(file), Some(out)) = (&args.plot, &args.out) {
        plot(&BenchReport::read(file)?, file, out, args.overwrite)?;
        return Ok(Outcome::Done);
    }
    anyhow::ensure!(
        args.out.is_none() || args.suite.contains(&Suite::Growth),
        "--out is where the curves of `--suite growth` are drawn; add that suite, or --plot FILE"
    );
    if let Some(path) = &args.json {
        refuse_existing(path, args.overwrite)?;
    }
    // Half precision where the backend has it: that is what runs of these sizes use.
    let dtype = match B::supports_dtype(device, Dtype::BFloat16.float().into()) {
        true if args.size != Size::Tiny => Dtype::BFloat16,
        _ => Dtype::Float32,
    };
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let mut output = Output {
        report: BenchReport {
            device: format!("{} {device:?}", B::name(device)),
            date: today(),
            command: format!("dualspeed {command}"),
            size: args.size.name(),
            dtype: format!("{dtype:?}").to_lowercase(),
            rows: Vec::new(),
        },
        path: args.json.clone(),
        quiet: cli.quiet,
    };
    let filter = Filter(args.case.clone());
    let step_options = StepOptions {
        size: args.size,
        dtype,
        warmup: args.warmup,
        steps: args.steps,
        overrides: args.overrides.clone(),
    };
    let mut done = Vec::new();
    for suite in &args.suite {
        if done.contains(suite) {
            continue;
        }
        done.push(*suite);
        println!("{}", header(*suite));
        let mut sink = |row| output.take(row);
        match suite {
            Suite::Steps => run_steps::<B>(&step_options, &filter, device, &mut sink)?,
            Suite::Ops => {
                let options = OpOptions { size: args.size, dtype, plain: args.plain };
                ops::run::<B>(&options, &filter, device, &mut sink)?;
            }
            Suite::Prune => {
                let registry = registry::<B::InnerBackend, E>(device);
                let specs = specs(&args.pruner, &registry)?;
                let shapes = PruneShapes::of(args.size, &args.size.config(dtype));
                prune::run(&registry, &specs, &shapes, &filter, device, &mut sink)?;
            }
            Suite::Growth => growth::run::<B>(&step_options, &filter, device, &mut sink)?,
        }
        B::memory_cleanup(device);
    }
    if let Some(out) = &args.out {
        let from = args.json.as_deref().unwrap_or(Path::new("this run"));
        plot(&output.report, from, out, args.overwrite)?;
    }
    Ok(Outcome::Done)
}

fn run_steps<B: AutodiffBackend>(
    options: &StepOptions,
    filter: &Filter,
    device: &B::Device,
    sink: &mut dyn FnMut(Row) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let known: Vec<&str> = steps::CASES.iter().map(|case| case.name).collect();
    let (mut rows, mut failed) = (0, Vec::new());
    for case in steps::CASES.iter().filter(|case| filter.wants_of(case.name, &known)) {
        rows += 1;
        match steps::run::<B>(case, options, device) {
            Ok(row) => sink(Row::Step(row))?,
            // The other steps may still fit.
            Err(error) => failed.push(format!("{error:#}")),
        }
    }
    anyhow::ensure!(failed.is_empty(), "{}", failed.join("; "));
    filter.ensure_some(rows, Suite::Steps, &known)
}

/// Draws the growth curves of a report.
fn plot(report: &BenchReport, from: &Path, out: &Path, overwrite: bool) -> anyhow::Result<()> {
    let plots = growth::plots(report)?;
    anyhow::ensure!(
        !plots.is_empty(),
        "{} holds no measurement of suite growth; make some with `dualspeed bench --suite growth --json FILE`",
        from.display()
    );
    let paths: Vec<PathBuf> = plots.iter().map(|(name, _)| out.join(name)).collect();
    for path in &paths {
        refuse_existing(path, overwrite)?;
    }
    for (path, (_, svg)) in paths.iter().zip(&plots) {
        write_atomic(path, svg.as_bytes())?;
        println!("{}", path.display());
    }
    Ok(())
}

/// Takes the rows as they come.
struct Output {
    report: BenchReport,
    path: Option<PathBuf>,
    quiet: bool,
}

impl Output {
    /// Prints a row and writes all so far: what is measured survives whatever ends the program.
    fn take(&mut self, row: Row) -> anyhow::Result<()> {
        println!("{}", line(&row));
        if let (Row::Step(row), false) = (&row, self.quiet) {
            let parts: Vec<String> =
                row.parts_ms.iter().map(|(name, ms)| format!("{name} {ms:.1}")).collect();
            println!("    {} ms", parts.join(", "));
        }
        self.report.rows.push(row);
        match &self.path {
            Some(path) => self.report.write(path),
            None => Ok(()),
        }
    }
}

fn header(suite: Suite) -> String {
    match suite {
        Suite::Steps => format!(
            "{:<24} {:>9} {:>8} {:>10} {:>10} {:>9} {:>8} {:>9} {:>8}",
            "step", "ms", "spread", "samples/s", "tokens/s", "TFLOP/s", "GiB", "first, s", "twice"
        ),
        Suite::Ops => format!(
            "{:<52} {:>11} {:>9} {:>9} {:>10}",
            "operation", "ms", "spread", "TFLOP/s", "first, ms"
        ),
        Suite::Prune => format!("{:<52} {:>11} {:>9}", "pruner", "ms", "spread"),
        Suite::Growth => format!(
            "{:<24} {:>9} {:>8} {:>10} {:>10} {:>9} {:>8}",
            "growth", "ms", "spread", "samples/s", "tokens/s", "TFLOP/s", "GiB"
        ),
    }
}

fn line(row: &Row) -> String {
    let shown = |value: Option<f64>, digits: usize| {
        value.map_or("-".to_string(), |value| format!("{value:.digits$}"))
    };
    match row {
        Row::Step(row) => format!(
            "{:<24} {:>9.1} {:>8.1} {:>10.1} {:>10.0} {:>9.1} {:>8} {:>9.1} {:>8}",
            row.name,
            row.ms,
            row.spread_ms,
            row.samples_per_s,
            row.tokens_per_s,
            row.tflops_4n,
            shown(row.memory_gib, 1),
            row.first_step_s,
            row.recomputed_blocks
        ),
        Row::Op(row) => format!(
            "{:<52} {:>11.4} {:>9.4} {:>9} {:>10.1}",
            row.name,
            row.ms,
            row.spread_ms,
            shown(row.tflops, 1),
            row.first_ms
        ),
        Row::Prune(row) => {
            format!("{:<52} {:>11} {:>9}", row.name, shown(row.ms, 3), shown(row.spread_ms, 3))
        }
        Row::Growth(row) => match &row.skipped {
            Some(why) => format!("{:<24} left out: {why}", row.name),
            None => format!(
                "{:<24} {:>9} {:>8} {:>10} {:>10} {:>9} {:>8}",
                row.name,
                shown(row.ms, 1),
                shown(row.spread_ms, 1),
                shown(row.samples_per_s, 1),
                shown(row.tokens_per_s, 0),
                shown(row.tflops_4n, 1),
                shown(row.memory_gib, 1)
            ),
        },
    }
}
