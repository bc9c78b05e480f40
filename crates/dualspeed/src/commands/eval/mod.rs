//! `dualspeed eval`: a run's model on its held-out data, in three views, or with one pruner after another.

mod pruners;

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use dualspeed_data::{ExampleSource, MemorySource};
use dualspeed_model::{Llava, View};
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::config::InitConfig;
use dualspeed_train::{EvalOptions, EvalReport, EvalView, TrainConfig, evaluate};

use super::checkpoint_args::PutArgs;
use super::global_args::GlobalArgs;
use crate::experiment::{self, evaluation_views};
use crate::extensions::{Extensions, parts, registry, sources};
use crate::hub;
use crate::output::{note, print_line};
use crate::quickstart::TEST_SCENES;
use crate::report::table::plain_table;
use crate::run_dir;

/// Arguments of `eval`.
#[derive(Debug, Args)]
pub(crate) struct EvalArgs {
    /// The run directory.
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    run: Option<PathBuf>,
    /// A published checkpoint instead: a directory, a GGUF file, a name on the hub; on the held-out data of --config.
    #[arg(long, value_name = "PATH", requires = "config")]
    model: Option<PathBuf>,
    /// What is put on that checkpoint.
    #[command(flatten)]
    put: PutArgs,
    /// With --model: a configuration with [data.valid], and with the pruning to evaluate.
    #[arg(long, value_name = "FILE", requires = "model")]
    config: Option<PathBuf>,
    /// With --config: override a key (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    /// Number of test examples (all by default).
    #[arg(long)]
    limit: Option<usize>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
    /// Compare pruners, by name as in `prune`, or `all` that the run's tower can serve: pruned
    /// inference at every `--keep`.
    #[arg(long, value_delimiter = ',')]
    pruner: Vec<String>,
    /// With --pruner: visual tokens to keep, as counts or shares (`14,10%`); the run's own by default.
    #[arg(long, value_delimiter = ',', requires = "pruner")]
    keep: Vec<String>,
    /// With --pruner: write the table as Markdown.
    #[arg(long, value_name = "FILE", requires = "pruner")]
    markdown: Option<PathBuf>,
    /// Replace the Markdown file if it exists.
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run<B: AutodiffBackend, E: Extensions>(
    args: &EvalArgs,
    global: &GlobalArgs,
    device: &B::Device,
) -> anyhow::Result<()> {
    anyhow::ensure!(args.limit != Some(0), "--limit 0 leaves nothing to evaluate; give at least 1");
    let config = read_config(args, !global.quiet)?;
    let source: Arc<dyn ExampleSource> =
        match (&config.data.valid, config.data.train.scene_config()) {
            (Some(valid), _) => {
                let source =
                    valid.open(&config.model, config.seed, config.compat, &sources::<E>())?;
                if let Some(run) = &args.run {
                    run_dir::warn_of_other_data(run, &*source)?;
                }
                source
            }
            (None, Some(_)) => {
                Arc::new(experiment::test_source(&config, args.limit.unwrap_or(TEST_SCENES))?)
            }
            (None, None) => anyhow::bail!(
                "{} names no held-out data; add a [data.valid] section to it",
                match (&args.run, &args.config) {
                    (Some(run), _) => run.join("config.toml").display().to_string(),
                    (None, config) => config.clone().unwrap_or_default().display().to_string(),
                }
            ),
        };
    let source: Arc<dyn ExampleSource> = match args.limit {
        Some(limit) if limit < source.len() => {
            let examples =
                (0..limit).map(|index| source.get(index)).collect::<Result<Vec<_>, _>>()?;
            let fingerprint = format!("{}-first-{limit}", source.fingerprint());
            Arc::new(MemorySource::new(examples, fingerprint))
        }
        _ => source,
    };
    let model: Llava<B::InnerBackend> = match &args.run {
        Some(run) => run_dir::load_model(run, &parts::<B, E>(), device)?,
        None => run_dir::initial_model(&config, &parts::<B, E>(), device)?,
    };
    let registry = registry::<B::InnerBackend, E>(device);
    if !args.pruner.is_empty() {
        pruners::run(args, global, &config, &model, source, &registry, device)?;
        return Ok(());
    }
    let pruner = registry.build(&config.pruner())?;
    let text_only = config.data.train.scene_config().is_some_and(|scenes| scenes.text_only);
    let views = match text_only {
        true => vec![EvalView::new("full", View::Full)],
        false => evaluation_views(&config),
    };
    let options = EvalOptions { progress: !global.quiet, ..EvalOptions::default() };
    let report = evaluate(&model, &*source, None, &views, Some(&*pruner), device, options)?;
    if args.json {
        print_line(serde_json::to_string_pretty(&report)?)
    } else {
        print_line(table(&report))
    }
}

/// The configuration of the run, or the one given with the checkpoint's architecture in it.
fn read_config(args: &EvalArgs, progress: bool) -> anyhow::Result<TrainConfig> {
    let (config, model) = match (&args.run, &args.config, &args.model) {
        (Some(run), ..) => {
            anyhow::ensure!(
                args.put.is_empty(),
                "a run brings its own tower, adapters and parts; leave those arguments out"
            );
            return run_dir::read_config(run);
        }
        (None, Some(config), Some(model)) => (config, hub::locate(model, progress)?),
        _ => anyhow::bail!("give --run DIR, or --model PATH with --config FILE"),
    };
    anyhow::ensure!(
        run_dir::is_checkpoint(&model),
        "{} is no checkpoint; a run is evaluated with --run",
        model.display()
    );
    let mut config = TrainConfig::load(config, &args.overrides)?;
    let load = args.put.load_options();
    config.init_from = Some(model);
    config.init =
        InitConfig { vision_tower: load.vision_tower, adapter: load.adapter, parts: load.parts };
    for line in run_dir::adopt_whole_checkpoint(&mut config)? {
        note(format_args!("{line}"));
    }
    Ok(config)
}

/// The views of a report as a table, a row each.
fn table(report: &EvalReport) -> String {
    let mut header: Vec<String> =
        ["view", "visual tokens", "accuracy", "CE"].map(String::from).to_vec();
    if let Some(view) = report.views.first() {
        header.extend(view.by_kind.keys().map(|kind| kind.name().to_string()));
    }
    let rows: Vec<Vec<String>> = report
        .views
        .iter()
        .map(|view| {
            let mut row = vec![
                view.name.clone(),
                format!("{:.0}", view.visual_tokens),
                format!("{:.1} %", 100.0 * view.accuracy),
                format!("{:.4}", view.ce),
            ];
            row.extend(view.by_kind.values().map(|kind| format!("{:.1} %", 100.0 * kind.accuracy)));
            row
        })
        .collect();
    format!("{}\n{} samples, {:.1} s", plain_table(&header, &rows), report.samples, report.seconds)
}
