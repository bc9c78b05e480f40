//! Reports from the files that runs wrote, never by hand.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;
use dualspeed::experiment::RunResult;
use dualspeed::files::write_atomic;
use dualspeed::output::say;
use dualspeed::quickstart::summary::{Stat, stat};
use dualspeed::report::html::Page;
use dualspeed::report::plot::{Bars, Curve, bars, curves};

use crate::run::{arm_dir, read_result};
use crate::scale::Scale;
use crate::studies::STUDIES;
use crate::study::{ReportKind, Study};

/// Writes `report.md`, `report.html` and plots for every study that has finished runs.
pub fn write(out: &Path) -> anyhow::Result<()> {
    let mut any = false;
    for study in STUDIES {
        for scale in Scale::value_variants() {
            let arms = collect(out, study, *scale)?;
            if arms.iter().all(|arm| arm.results.is_empty()) {
                continue;
            }
            any = true;
            write_study(&out.join(study.name).join(scale.name()), study, *scale, &arms)?;
        }
    }
    anyhow::ensure!(any, "no finished runs under {}; run a study first: `run NAME`", out.display());
    Ok(())
}

struct ArmResults {
    name: &'static str,
    overrides: String,
    results: BTreeMap<u64, RunResult>,
}

impl ArmResults {
    /// A number over the arm's seeds.
    fn over(&self, pick: impl Fn(&RunResult) -> f64) -> Stat {
        stat(&self.results.values().map(pick).collect::<Vec<_>>())
    }

    /// A number relative to the reference arm's of the same seed.
    fn relative(
        &self,
        reference: &ArmResults,
        pick: impl Fn(&RunResult, &RunResult) -> f64,
    ) -> Option<Stat> {
        let pairs: Vec<f64> = self
            .results
            .iter()
            .filter_map(|(seed, ours)| Some(pick(ours, reference.results.get(seed)?)))
            .collect();
        (!pairs.is_empty()).then(|| stat(&pairs))
    }
}

fn collect(out: &Path, study: &Study, scale: Scale) -> anyhow::Result<Vec<ArmResults>> {
    let mut arms = Vec::new();
    for arm in study.arms {
        let first = arm_dir(out, study, scale, arm, 0);
        let mut results = BTreeMap::new();
        let entries = first.parent().map(std::fs::read_dir);
        if let Some(Ok(entries)) = entries {
            for entry in entries {
                let dir = entry.context("cannot list the runs")?.path();
                if let Some(result) = read_result(&dir) {
                    results.insert(result.seed, result);
                }
            }
        }
        arms.push(ArmResults { name: arm.name, overrides: arm.overrides.join(", "), results });
    }
    Ok(arms)
}

fn write_study(dir: &Path, study: &Study, scale: Scale, arms: &[ArmResults]) -> anyhow::Result<()> {
    let (header, rows) = table(study, arms);
    let seeds = arms.iter().map(|arm| arm.results.len()).max().unwrap_or(0);
    let command = format!(
        "cargo run --release -p experiments -- run {} --seeds {seeds} --scale {}",
        study.name,
        scale.name()
    );
    let plot = plot(study, arms)?;
    let markdown = format!(
        "# {}\n\n{} ({})\n\n{}\n\n![plot](plot.svg)\n\nMeans over {seeds} seed(s), ± sample standard deviation. \
         Retention and speed-up are relative to `{}` of the same seed.\n\n    {command}\n",
        study.name,
        study.question,
        study.source,
        markdown_table(&header, &rows),
        study.reference
    );
    let subtitle =
        format!("{} ({}), {seeds} seed(s), scale {}", study.question, study.source, scale.name());
    let page = Page::new(study.name, &subtitle)
        .table(&header, &rows)
        .plots(std::slice::from_ref(&plot))
        .paragraph(&format!(
            "Retention and speed-up are relative to {} of the same seed; training time is projector, pruning, \
             language model and optimiser.",
            study.reference
        ))
        .code(&command);
    write_atomic(&dir.join("plot.svg"), plot.as_bytes())?;
    write_atomic(&dir.join("report.md"), markdown.as_bytes())?;
    write_atomic(&dir.join("report.html"), page.finish().as_bytes())?;
    say(format_args!("{}\n{}\n", dir.join("report.md").display(), markdown_table(&header, &rows)));
    Ok(())
}

fn table(study: &Study, arms: &[ArmResults]) -> (Vec<String>, Vec<Vec<String>>) {
    let header =
        ["arm", "overrides", "full", "pruned", "retention", "slow steps", "train", "speed-up"];
    let reference = arms.iter().find(|arm| arm.name == study.reference);
    let rows = arms
        .iter()
        .filter(|arm| !arm.results.is_empty())
        .map(|arm| {
            let relative = |scale: f64,
                            digits: usize,
                            unit: &str,
                            pick: fn(&RunResult, &RunResult) -> f64| {
                let stat = reference.and_then(|reference| arm.relative(reference, pick));
                stat.map_or("-".into(), |stat| show(stat, arm.results.len(), scale, digits, unit))
            };
            let own = |pick: fn(&RunResult) -> f64, scale: f64, digits: usize, unit: &str| {
                show(arm.over(pick), arm.results.len(), scale, digits, unit)
            };
            vec![
                arm.name.to_string(),
                arm.overrides.clone(),
                own(|r| r.accuracy("full"), 100.0, 1, " %"),
                own(|r| r.accuracy("pruned"), 100.0, 1, " %"),
                relative(100.0, 1, " %", |a, b| a.accuracy("full") / b.accuracy("full")),
                own(|r| r.slow_share, 100.0, 0, " %"),
                own(|r| r.train_seconds, 1.0, 1, " s"),
                relative(1.0, 2, "x", |a, b| b.train_seconds / a.train_seconds.max(1e-9)),
            ]
        })
        .collect();
    (header.map(String::from).to_vec(), rows)
}

fn show(stat: Stat, seeds: usize, scale: f64, digits: usize, unit: &str) -> String {
    if !stat.mean.is_finite() {
        return "-".to_owned(); // relative to nothing
    }
    let spread =
        if seeds > 1 { format!(" ± {:.digits$}", stat.std * scale) } else { String::new() };
    format!("{:.digits$}{spread}{unit}", stat.mean * scale)
}

fn markdown_table(header: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |", cells.join(" | "));
    let mut out = vec![line(header), format!("|{}", "---|".repeat(header.len()))];
    out.extend(rows.iter().map(|row| line(row)));
    out.join("\n")
}

fn plot(study: &Study, arms: &[ArmResults]) -> anyhow::Result<String> {
    let done: Vec<&ArmResults> = arms.iter().filter(|arm| !arm.results.is_empty()).collect();
    let percent = |arm: &ArmResults, view: &str| {
        let stat = arm.over(|r| r.accuracy(view));
        (100.0 * stat.mean, 100.0 * stat.std)
    };
    Ok(match study.report {
        ReportKind::Table => {
            let names: Vec<String> = done.iter().map(|arm| arm.name.to_string()).collect();
            let set = |name: &str, view: &str| Bars {
                name: name.into(),
                values: done.iter().map(|arm| percent(arm, view)).collect(),
            };
            let sets = [set("full inference", "full"), set("pruned inference", "pruned")];
            bars(study.name, "test accuracy, %", &names, &sets, &[])?
        }
        ReportKind::Tradeoff => {
            let dots: Vec<Curve> = done
                .iter()
                .map(|arm| Curve {
                    name: arm.name.into(),
                    points: vec![(arm.over(|r| r.train_seconds).mean, percent(arm, "full").0)],
                    dots: true,
                })
                .collect();
            curves(study.name, "training, s", "full-inference accuracy, %", &dots)?
        }
    })
}
