//! `report.html`: the table, plots and pictures of a quickstart, made from its summary and the metrics
//! files that the runs wrote.

use std::path::Path;

use dualspeed_train::{METRICS_FILE, read_metrics};

use super::arms::{ARMS, arm_dir};
use super::summary::{Measured, Summary};
use crate::report::html::Page;
use crate::report::plot::{Bars, Curve, bars, curves, smooth};

/// The page for `summary`, with the curves of the first seed's runs under `dir` and the picture `strip` (PNG).
///
/// # Errors
/// A metrics file that cannot be read.
pub fn page(dir: &Path, summary: &Summary, strip: &[u8], caption: &str) -> anyhow::Result<String> {
    let (header, rows) = summary.table();
    let chance = summary.overall(|s| s.chance);
    let text_only = summary.overall(|s| s.text_only_accuracy);
    let featurise = summary.overall(|s| s.featurise_seconds);
    let full = summary.model("dualspeed", |m| m.visual_tokens_full).mean;
    let pruned = summary.model("dualspeed", |m| m.visual_tokens_pruned).mean;
    let seeds = summary.seeds.len();
    let subtitle = format!(
        "{} seed{} on {}, {:.0} s in all",
        seeds,
        if seeds == 1 { "" } else { "s; means ± standard deviation" },
        summary.backend,
        summary.total_seconds
    );
    let note = format!(
        "Chance (the most frequent answer of each kind of question): {}. The same model without pictures: {}. \
         Running the frozen vision tower over the training set took {} and is shared by all models; training time is \
         projector, pruning, language model and optimiser. Full inference sees {full:.0} visual tokens per picture, \
         pruned inference {pruned:.0}. Retention is relative to the baseline's full inference.",
        summary.show(chance, 100.0, 1, " %"),
        summary.show(text_only, 100.0, 1, " %"),
        summary.show(featurise, 1.0, 0, " s"),
    );
    let mut page = Page::new("dualspeed quickstart", &subtitle)
        .table(&header, &rows)
        .paragraph(&note)
        .heading("Accuracy, time and loss")
        .plots(&[accuracy(summary)?, time(summary)?, by_kind(summary)?, losses(dir, summary)?])
        .heading("What survives pruning")
        .png(strip, caption);
    page = page.heading("Recipe").code(&summary.recipe);
    Ok(page.finish())
}

fn names() -> Vec<String> {
    ARMS.iter().map(|arm| arm.label.to_string()).collect()
}

fn values(summary: &Summary, pick: fn(&Measured) -> f64, scale: f64) -> Vec<(f64, f64)> {
    ARMS.iter()
        .map(|arm| summary.model(arm.name, pick))
        .map(|s| (s.mean * scale, s.std * scale))
        .collect()
}

fn accuracy(summary: &Summary) -> anyhow::Result<String> {
    let set = |name: &str, pick| Bars { name: name.into(), values: values(summary, pick, 100.0) };
    let lines = [
        ("without pictures".to_string(), summary.overall(|s| s.text_only_accuracy).mean * 100.0),
        ("chance".to_string(), summary.overall(|s| s.chance).mean * 100.0),
    ];
    Ok(bars(
        "Test accuracy by kind of inference",
        "%",
        &names(),
        &[
            set("full tokens", |m| m.accuracy_full),
            set("pruned, isolator as trained", |m| m.accuracy_pruned),
            set("pruned, no isolator", |m| m.accuracy_pruned_no_isolator),
        ],
        &lines,
    )?)
}

fn time(summary: &Summary) -> anyhow::Result<String> {
    let set = Bars { name: "training".into(), values: values(summary, |m| m.train_seconds, 1.0) };
    let featurise = summary.overall(|s| s.featurise_seconds).mean;
    let shared = ("tower features, shared".to_string(), featurise);
    Ok(bars("Training time", "s", &names(), &[set], &[shared])?)
}

fn by_kind(summary: &Summary) -> anyhow::Result<String> {
    let of = |name: &str| summary.seeds.first().and_then(|s| s.models.get(name));
    let kinds: Vec<String> = of("baseline")
        .map(|m| m.accuracy_full_by_kind.keys().cloned().collect())
        .unwrap_or_default();
    let series: Vec<Bars> = ARMS
        .iter()
        .map(|arm| Bars {
            name: arm.label.into(),
            values: kinds
                .iter()
                .map(|kind| {
                    let stat = summary.model(arm.name, |m| {
                        m.accuracy_full_by_kind.get(kind).copied().unwrap_or(0.0)
                    });
                    (100.0 * stat.mean, 100.0 * stat.std)
                })
                .collect(),
        })
        .collect();
    Ok(bars("Full inference by kind of question", "%", &kinds, &series, &[])?)
}

fn losses(dir: &Path, summary: &Summary) -> anyhow::Result<String> {
    let mut drawn = Vec::new();
    if let Some(seed) = summary.seeds.first() {
        for arm in ARMS {
            let records = read_metrics(&arm_dir(dir, seed.seed, arm.name).join(METRICS_FILE))?;
            // A step that was skipped has no cross entropy.
            let records = records.iter().filter(|record| record.skipped.is_none());
            let points: Vec<_> = records.map(|r| (r.time.train_seconds, r.ce)).collect();
            drawn.push(Curve { name: arm.label.into(), points: smooth(&points, 25), dots: false });
        }
    }
    Ok(curves("Training loss against training time", "seconds", "cross entropy", &drawn)?)
}
