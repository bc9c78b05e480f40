//! `dualspeed eval`: a run's model on its held-out data, in three views, or with one pruner after another.

mod pruners;

use std::sync::Arc;

use dualspeed_data::{ExampleSource, MemorySource};
use dualspeed_model::{Llava, View};
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::{EvalOptions, EvalReport, EvalView, evaluate};

use super::Outcome;
use crate::cli::{Cli, EvalArgs};
use crate::extensions::{Extensions, registry, sources};
use crate::quickstart::{TEST_SCENES, summary::plain_table};
use crate::{lab, run};

pub fn run<B: AutodiffBackend, E: Extensions>(
    cli: &Cli,
    args: &EvalArgs,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    anyhow::ensure!(args.limit != Some(0), "--limit 0 leaves nothing to evaluate; give at least 1");
    let config = run::config(&args.run)?;
    let source: Arc<dyn ExampleSource> =
        match (&config.data.valid, config.data.train.scene_config()) {
            (Some(valid), _) => valid.open(&config.model, config.seed, &sources::<E>())?,
            (None, Some(_)) => {
                Arc::new(lab::test_source(&config, args.limit.unwrap_or(TEST_SCENES))?)
            }
            (None, None) => anyhow::bail!(
                "{} names no held-out data; add a [data.valid] section to its config.toml",
                args.run.display()
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
    let model: Llava<B::InnerBackend> = run::load(&args.run, device)?;
    let registry = registry::<B::InnerBackend, E>(device);
    if !args.pruner.is_empty() {
        pruners::run(cli, args, &config, &model, source, &registry, device)?;
        return Ok(Outcome::Done);
    }
    let pruner = registry.build(&config.pruner())?;
    let text_only = config.data.train.scene_config().is_some_and(|scenes| scenes.text_only);
    let views = match text_only {
        true => vec![EvalView::new("full", View::Full)],
        false => lab::views(&config),
    };
    let options = EvalOptions { progress: !cli.quiet, ..EvalOptions::default() };
    let report = evaluate(&model, &*source, None, &views, Some(&*pruner), device, options)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", table(&report));
    }
    Ok(Outcome::Done)
}

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
