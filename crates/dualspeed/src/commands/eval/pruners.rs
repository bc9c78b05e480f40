//! One trained model, every pruner: pruned inference at several budgets, and what pruning takes.

use std::fmt::Write;
use std::sync::Arc;

use anyhow::Context;
use dualspeed_data::ExampleSource;
use dualspeed_model::{Llava, Needs, PruneError, Pruner, PrunerSpec, Registry, View};
use dualspeed_ops::Backend;
use dualspeed_train::{
    EvalOptions, EvalView, FeatureCache, TrainConfig, TrainError, ViewReport, evaluate,
};
use serde_json::{Value, json};

use super::EvalArgs;
use crate::commands::global_args::GlobalArgs;
use crate::commands::overwrite::refuse_existing;
use crate::commands::pruner_specs::parse_pruner_specs;
use crate::files::write_atomic;
use crate::output::{note, print_line};
use crate::report::table::plain_table;

/// One pruner's results; `None` where it cannot make that count.
struct Row {
    spec: PrunerSpec,
    in_decoder: bool,
    cells: Vec<Option<ViewReport>>,
}

/// Evaluates the run's model with each pruner of `--pruner` at each count of `--keep`, and prints or writes the table.
pub(super) fn run<B: Backend>(
    args: &EvalArgs,
    global: &GlobalArgs,
    config: &TrainConfig,
    model: &Llava<B>,
    source: Arc<dyn ExampleSource>,
    registry: &Registry<B>,
    device: &B::Device,
) -> anyhow::Result<()> {
    if let Some(path) = &args.markdown {
        refuse_existing(path, args.overwrite)?;
    }
    let n = config.model.num_visual_tokens();
    let budgets = match args.keep.is_empty() {
        true => vec![config.keep_count(n)],
        false => args.keep.iter().map(|keep| budget(keep, n)).collect::<Result<_, _>>()?,
    };
    let specs = parse_pruner_specs(&args.pruner, registry)?;
    let pruners = specs.iter().map(|spec| registry.build(spec)).collect::<Result<Vec<_>, _>>()?;
    let needs = pruners.iter().fold(Needs::default(), |needs, pruner| needs | pruner.needs());
    let features =
        FeatureCache::compute(&*model.vision_tower, &source, needs, 32, device, !global.quiet)?;
    let source = features.source();
    let options = EvalOptions { progress: !global.quiet, ..EvalOptions::default() };
    let eval = |pruner: Option<&dyn Pruner<B>>, view: View| {
        let views = [EvalView::new("view", view)];
        let report = evaluate(model, &*source, Some(&features), &views, pruner, device, options)?;
        Ok::<_, TrainError>(report.views.into_iter().next().unwrap_or_default())
    };
    let full = eval(None, View::Full)?;
    let isolator = config.model.isolator_length > 0;
    let everything = args.pruner.iter().any(|name| name == "all");
    let mut rows = Vec::new();
    'pruners: for (spec, pruner) in specs.into_iter().zip(&pruners) {
        let mut cells = Vec::new();
        for keep in &budgets {
            let view = View::Pruned { keep: *keep, isolator };
            cells.push(match eval(Some(&**pruner), view) {
                Ok(report) => Some(report),
                Err(TrainError::Model(error)) if is_unsupported_count(&error) => None,
                Err(TrainError::Model(error)) if everything && is_unserved(&error) => {
                    continue 'pruners;
                }
                Err(error) => return Err(error).with_context(|| format!("pruner {spec}")),
            });
        }
        if !global.quiet {
            let shown: Vec<String> = cells.iter().map(accuracy).collect();
            note(format_args!("{:<14} {}", spec.to_string(), shown.join("  ")));
        }
        let in_decoder = pruner.layer_drop(budgets[0]).is_some();
        rows.push(Row { spec, in_decoder, cells });
    }
    let mean = |row: &Row| {
        let found: Vec<f64> = row.cells.iter().flatten().map(|cell| cell.accuracy).collect();
        found.iter().sum::<f64>() / found.len().max(1) as f64
    };
    rows.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    let batches = source.len().div_ceil(options.batch);
    let (header, body) = table(&rows, &budgets, n, batches);
    let about = about(&rows, &full, source.len(), options.batch, n);
    if let Some(path) = &args.markdown {
        let text = format!("{}\n\n{about}\n", markdown(&header, &body));
        write_atomic(path, text.as_bytes())?;
    }
    if args.json {
        print_line(serde_json::to_string_pretty(&json(&rows, &budgets, &full, batches))?)
    } else {
        print_line(format_args!("{}\n\n{about}", plain_table(&header, &body)))
    }
}

/// A count, or a share of `n` rounded down, at least one.
fn budget(text: &str, n: usize) -> anyhow::Result<usize> {
    let text = text.trim();
    let wrong = || format!("--keep {text}: give counts up to {n} or shares like 10%");
    let keep = match text.strip_suffix('%') {
        Some(percent) => {
            let percent: f64 = percent.parse().with_context(wrong)?;
            ((percent / 100.0 * n as f64) as usize).max(1)
        }
        None => text.parse().with_context(wrong)?,
    };
    anyhow::ensure!((1..n).contains(&keep), wrong());
    Ok(keep)
}

/// Whether a pruner cannot make that count; any other error is one.
fn is_unsupported_count(error: &dualspeed_model::ModelError) -> bool {
    use dualspeed_model::ModelError::Prune;
    matches!(error, Prune(PruneError::NoGrid { .. } | PruneError::NoDrop { .. }))
}

/// Whether the run's tower does not make what a pruner reads, which `all` passes over.
fn is_unserved(error: &dualspeed_model::ModelError) -> bool {
    use dualspeed_model::ModelError::Prune;
    matches!(error, Prune(PruneError::MissingFeature { .. } | PruneError::TokenCount { .. }))
}

fn accuracy(cell: &Option<ViewReport>) -> String {
    cell.as_ref().map_or("-".into(), |cell| format!("{:.1} %", 100.0 * cell.accuracy))
}

fn table(
    rows: &[Row],
    budgets: &[usize],
    n: usize,
    batches: usize,
) -> (Vec<String>, Vec<Vec<String>>) {
    let share = |keep: &usize| format!("{keep} ({:.0} %)", 100.0 * *keep as f64 / n as f64);
    let mut header = vec!["pruner".to_owned()];
    header.extend(budgets.iter().map(share));
    header.extend(budgets.iter().map(|keep| format!("ms, {keep}")));
    let time = |row: &Row, cell: &Option<ViewReport>| match cell {
        Some(cell) if !row.in_decoder => {
            format!("{:.1}", 1e3 * cell.prune_seconds / batches.max(1) as f64)
        }
        _ => "-".into(),
    };
    let body = rows.iter().map(|row| {
        let mut line = vec![row.spec.to_string()];
        line.extend(row.cells.iter().map(accuracy));
        line.extend(row.cells.iter().map(|cell| time(row, cell)));
        line
    });
    (header, body.collect())
}

/// What the table does not say by itself.
fn about(rows: &[Row], full: &ViewReport, samples: usize, batch: usize, n: usize) -> String {
    let mut note = format!(
        "Accuracy of pruned inference over {} questions about {samples} pictures, by visual tokens kept; all \
         {n} tokens: {:.1} %. ms: pruning (gather or merge and projection of merged tokens included) per \
         batch of {batch} pictures. -: the method cannot make that count.",
        full.questions,
        100.0 * full.accuracy
    );
    if rows.iter().any(|row| row.in_decoder) {
        let _ = write!(
            note,
            " pyramiddrop and the like keep all tokens up to the first drop inside the decoder: the counts are \
             those of its last part, and the time is part of the decoder's."
        );
    }
    note
}

fn markdown(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let rule = format!("|---|{}", "---:|".repeat(header.len() - 1));
    let mut out = vec![line(header), rule];
    out.extend(rows.iter().map(|row| line(row)));
    out.join("\n")
}

fn json(rows: &[Row], budgets: &[usize], full: &ViewReport, batches: usize) -> Value {
    let rows: Vec<Value> = rows
        .iter()
        .map(|row| {
            let cells: Vec<Value> = budgets
                .iter()
                .zip(&row.cells)
                .map(|(keep, report)| {
                    let seconds =
                        report.as_ref().map(|report| report.prune_seconds / batches.max(1) as f64);
                    json!({ "keep": keep, "report": report, "prune_seconds_per_batch": seconds })
                })
                .collect();
            json!({ "pruner": row.spec.to_string(), "budgets": cells })
        })
        .collect();
    json!({ "full": full, "pruners": rows })
}
