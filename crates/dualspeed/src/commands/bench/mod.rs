//! `dualspeed bench`: times of training steps, operations and pruners, and how costs grow.

mod text;

use std::path::{Path, PathBuf};

use clap::Args;
use dualspeed_core::date;
use dualspeed_model::Dtype;
use dualspeed_ops::AutodiffBackend;

use super::global_args::GlobalArgs;
use super::overwrite::refuse_existing;
use super::pruner_specs::parse_pruner_specs;
use crate::bench::ops::{self, OpOptions};
use crate::bench::prune::{self, PruneShapes};
use crate::bench::steps::{self, StepOptions};
use crate::bench::{BenchReport, Filter, ModelSize, Row, Suite, growth};
use crate::extensions::{Extensions, registry};
use crate::files::write_atomic;
use crate::output::{print_line, say};

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// What to time (repeatable, or separated by commas).
    #[arg(long, value_enum, value_delimiter = ',', default_value = "steps")]
    suite: Vec<Suite>,
    /// Shapes of the model.
    #[arg(long, value_enum, default_value_t = ModelSize::Llava7b)]
    size: ModelSize,
    /// Only rows with NAME in their name, e.g. `--case "stage 2 fast"`, which is one step, or
    /// `--case attention` (repeatable; all by default).
    #[arg(long, value_name = "NAME")]
    case: Vec<String>,
    /// Suites steps and growth: steps before the counted ones.
    #[arg(long, default_value_t = 3)]
    warmup: usize,
    /// Suites steps and growth: counted steps.
    #[arg(long, default_value_t = 10)]
    steps: usize,
    /// Suites steps and growth: override a key of the training configuration, e.g.
    /// `--set memory.recompute=input` (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// Suite ops: also time Burn's own bodies on a few shapes.
    #[arg(long)]
    plain: bool,
    /// Suite prune: pruners by name, separated by commas, as in `prune`; `all`.
    #[arg(long, default_value = "all", value_delimiter = ',')]
    pruner: Vec<String>,
    /// Also write the rows as JSON, after each of them.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Suite growth: also draw the curves, as SVG.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Measure nothing; draw the growth curves of FILE, which --json wrote, into --out.
    #[arg(long, value_name = "FILE", requires = "out", conflicts_with_all = ["suite", "json"])]
    plot: Option<PathBuf>,
    /// Replace files that exist.
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run<B: AutodiffBackend, E: Extensions>(
    args: &BenchArgs,
    global: &GlobalArgs,
    device: &B::Device,
) -> anyhow::Result<()> {
    if let (Some(file), Some(out)) = (&args.plot, &args.out) {
        plot(&BenchReport::read(file)?, file, out, args.overwrite)?;
        return Ok(());
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
        true if args.size != ModelSize::Tiny => Dtype::BFloat16,
        _ => Dtype::Float32,
    };
    let command = std::env::args().skip(1).collect::<Vec<_>>().join(" ");
    let mut output = Output {
        report: BenchReport {
            device: format!("{} {device:?}", B::name(device)),
            date: date::iso(date::today()),
            command: format!("dualspeed {command}"),
            size: args.size.name(),
            dtype: format!("{dtype:?}").to_lowercase(),
            rows: Vec::new(),
        },
        path: args.json.clone(),
        quiet: global.quiet,
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
        output.tell(text::header(*suite))?;
        let mut sink = |row| output.take(row);
        match suite {
            Suite::Steps => steps::run::<B>(&step_options, &filter, device, &mut sink)?,
            Suite::Ops => {
                let options = OpOptions { size: args.size, dtype, plain: args.plain };
                ops::run::<B>(&options, &filter, device, &mut sink)?;
            }
            Suite::Prune => {
                let registry = registry::<B::InnerBackend, E>(device);
                let specs = parse_pruner_specs(&args.pruner, &registry)?;
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
    Ok(())
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
        say(format_args!("{}", path.display()));
    }
    Ok(())
}

/// The rows measured so far, and where they go.
struct Output {
    report: BenchReport,
    path: Option<PathBuf>,
    quiet: bool,
}

impl Output {
    /// Prints a line. With a file, that has all of it.
    fn tell(&self, line: impl std::fmt::Display) -> anyhow::Result<()> {
        match &self.path {
            Some(_) => say(format_args!("{line}")),
            None => print_line(line)?,
        }
        Ok(())
    }

    /// Prints a row and writes all so far: what is measured survives whatever ends the program.
    fn take(&mut self, row: Row) -> anyhow::Result<()> {
        self.tell(text::line(&row))?;
        if let (Row::Step(row), false) = (&row, self.quiet) {
            let parts: Vec<String> =
                row.parts_ms.iter().map(|(name, ms)| format!("{name} {ms:.1}")).collect();
            self.tell(format_args!("    {} ms", parts.join(", ")))?;
        }
        self.report.rows.push(row);
        match &self.path {
            Some(path) => self.report.write(path),
            None => Ok(()),
        }
    }
}
