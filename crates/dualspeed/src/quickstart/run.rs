//! The trainings of a quickstart, and what is written at its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use dualspeed_model::Needs;
use dualspeed_model::vision::features::CLS_ATTENTION;
use dualspeed_ops::AutodiffBackend;

use super::arms::{ARMS, Arm, TEXT_ONLY, arm_dir};
use super::kept_tokens::{kept_tokens, shown_pruners};
use super::recipe::{TEST_SCENES, recipe_config};
use super::report;
use super::summary::{Measured, SeedResult, Summary};
use crate::experiment::{ExperimentData, RunResult};
use crate::extensions::{Extensions, registry, sources};
use crate::files::{write_atomic, write_json};
use crate::output::note;

/// The seeds, overrides and output of a quickstart.
#[derive(Debug, Clone)]
pub struct QuickstartOptions {
    /// The directory of all reports and runs.
    pub out: PathBuf,
    /// Number of seeds.
    pub seeds: u64,
    /// Whether an earlier quickstart in `out` is replaced.
    pub overwrite: bool,
    /// Overrides of the recipe for every arm, `key=value`.
    pub overrides: Vec<String>,
    /// The backend's name, for the report.
    pub backend: String,
    /// Whether progress bars are shown.
    pub progress: bool,
    /// Ends the training after its current step once it is set.
    pub interrupt: Arc<AtomicBool>,
}

/// Trains and evaluates the arms with every seed, and writes `summary.json`, `report.html` and `strip.png`.
///
/// # Errors
/// If `options.out` is in use, or whatever training reports.
pub fn run<B: AutodiffBackend, E: Extensions>(
    device: &B::Device,
    options: &QuickstartOptions,
) -> anyhow::Result<Summary> {
    let begin = Instant::now();
    let out = &options.out;
    let occupied = std::fs::read_dir(out).is_ok_and(|mut entries| entries.next().is_some());
    anyhow::ensure!(
        options.overwrite || !occupied,
        "{} exists and is not empty; give another --out, or --overwrite to replace it",
        out.display()
    );
    let mut summary = Summary {
        seeds: Vec::new(),
        total_seconds: 0.0,
        backend: options.backend.clone(),
        recipe: recipe_config(0, &[], &options.overrides)?.to_toml()?,
    };
    let mut pictures = Vec::new();
    for seed in 0..options.seeds {
        let base = recipe_config(seed, &[], &options.overrides)?;
        let pruners = registry::<B, E>(device);
        let needs = pruners.build(&base.pruner())?.needs() | Needs::of([CLS_ATTENTION]);
        let n = base.model.num_visual_tokens();
        note(format_args!(
            "seed {seed}: {n} visual tokens a picture, {} after pruning ({}), {} steps of {} samples",
            base.keep_count(n),
            base.pruner().name,
            base.steps.map_or("all".to_string(), |s| s.to_string()),
            base.batch.window()
        ));
        let mut data = ExperimentData::<B>::new(
            &base,
            TEST_SCENES,
            &needs,
            &sources::<E>(),
            device,
            options.progress,
        )?;
        data.interrupt = options.interrupt.clone();
        note(format_args!(
            "tower features of the training set: {:.1} s, shared by all models",
            data.featurise_seconds()
        ));
        let train = |arm: &Arm| -> anyhow::Result<RunResult> {
            let config = recipe_config(seed, arm.overrides, &options.overrides)?;
            let dir = arm_dir(out, seed, arm.name);
            let result =
                data.train_and_evaluate::<E>(arm.name, &config, &dir, options.overwrite)?;
            note(format_args!(
                "{:<12} trained in {:>5.0} s   full {:.1} %   pruned {:.1} %",
                arm.label,
                result.train_seconds,
                100.0 * result.accuracy("full"),
                100.0 * result.accuracy("pruned")
            ));
            Ok(result)
        };
        let results = ARMS.iter().map(train).collect::<anyhow::Result<Vec<_>>>()?;
        let text_only = train(&TEXT_ONLY)?;
        if seed == 0 {
            pictures = kept_tokens::<B, E>(&arm_dir(out, seed, "dualspeed"), &base, device)?;
        }
        summary.seeds.push(seed_result(seed, &results, &text_only, &data));
    }
    summary.total_seconds = begin.elapsed().as_secs_f64();
    write_json(&out.join("summary.json"), &summary.to_json())?;
    write_atomic(&out.join("strip.png"), &pictures)?;
    let pruners = shown_pruners(&recipe_config(0, &[], &options.overrides)?).join(", ");
    let caption = format!(
        "Top: test pictures. Below, row by row, the visual tokens that {pruners} keep; the others are dimmed."
    );
    let page = report::page(out, &summary, &pictures, &caption)?;
    write_atomic(&out.join("report.html"), page.as_bytes())?;
    Ok(summary)
}

/// The results of one seed, relative to those of the first arm.
fn seed_result<B: AutodiffBackend>(
    seed: u64,
    results: &[RunResult],
    text_only: &RunResult,
    data: &ExperimentData<B>,
) -> SeedResult {
    let baseline = results.first().map_or((1.0, 1.0), |b| (b.accuracy("full"), b.train_seconds));
    // Of a baseline that answers nothing there is nothing to retain.
    let retained = |accuracy: f64| if baseline.0 > 0.0 { accuracy / baseline.0 } else { f64::NAN };
    let measured = |r: &RunResult| Measured {
        accuracy_full: r.accuracy("full"),
        accuracy_pruned: r.accuracy("pruned"),
        accuracy_pruned_no_isolator: r.accuracy("pruned_no_isolator"),
        accuracy_full_heldout_vendor: r.held_out.view("full").map_or(0.0, |v| v.accuracy),
        retention_full: retained(r.accuracy("full")),
        retention_pruned: retained(r.accuracy("pruned")),
        train_seconds: r.train_seconds,
        speedup: baseline.1 / r.train_seconds.max(f64::MIN_POSITIVE),
        visual_tokens_full: r.visual_tokens("full"),
        visual_tokens_pruned: r.visual_tokens("pruned"),
        accuracy_full_by_kind: r.by_kind(),
    };
    SeedResult {
        seed,
        models: results.iter().map(|r| (r.name.clone(), measured(r))).collect(),
        chance: data.chance(),
        text_only_accuracy: text_only.accuracy("full"),
        featurise_seconds: data.featurise_seconds(),
    }
}
