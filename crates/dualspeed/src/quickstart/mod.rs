//! Three models from the same seed and data (baseline, NaivePrune, DualSpeed), one table, one report.

pub mod report;
pub mod summary;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use dualspeed_model::{Needs, PrunerSpec};
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::TrainConfig;

use crate::commands::prune::{Eye, Question, kept_patches};
use crate::extensions::{Extensions, registry};
use crate::lab::{Lab, RunResult};
use crate::report::strip;
use crate::run;
use summary::{Measured, SeedResult, Summary, plain_table};

/// The recipe: DualSpeed's configuration; the other models override a line or two of it.
pub const RECIPE: &str = include_str!("recipe.toml");

/// Scenes in the test set.
pub const TEST_SCENES: usize = 512;

/// One of the compared models.
#[derive(Debug, Clone, Copy)]
pub struct Model {
    /// Key in `summary.json` and directory name.
    pub name: &'static str,
    /// Label in plots.
    pub shown: &'static str,
    /// Overrides on the recipe.
    pub overrides: &'static [&'static str],
}

/// The compared models, the baseline first.
pub const MODELS: &[Model] = &[
    Model {
        name: "baseline",
        shown: "baseline",
        overrides: &["mode.schedule=always_slow", "distill.lambda=0.0"],
    },
    Model {
        name: "naive_prune",
        shown: "NaivePrune",
        overrides: &["mode.schedule=always_fast", "isolator.enabled=false"],
    },
    Model { name: "dualspeed", shown: "DualSpeed", overrides: &[] },
];

/// The same model without pictures, for the floor that language alone gives.
const TEXT_ONLY: Model = Model {
    name: "text_only",
    shown: "text only",
    overrides: &[
        "mode.schedule=always_slow",
        "distill.lambda=0.0",
        "data.train.scenes.text_only=true",
    ],
};

/// What to run and where.
#[derive(Debug, Clone)]
pub struct Options {
    /// The directory of all output.
    pub out: PathBuf,
    /// Number of seeds.
    pub seeds: u64,
    /// Replace an earlier quickstart in `out`.
    pub overwrite: bool,
    /// Overrides for every model.
    pub overrides: Vec<String>,
    /// The backend's name, for the report.
    pub backend: String,
    /// Show progress bars.
    pub progress: bool,
    /// Set it to stop after the current step.
    pub interrupt: Arc<AtomicBool>,
}

/// The run directory of one model.
pub fn run_dir(out: &Path, seed: u64, model: &str) -> PathBuf {
    out.join(format!("seed-{seed}")).join(model)
}

/// The recipe with overrides, for one seed and model. The data follow the seed, too.
///
/// # Errors
/// A bad override.
pub fn config(seed: u64, own: &[&str], overrides: &[String]) -> anyhow::Result<TrainConfig> {
    let seeded = [format!("seed={seed}"), format!("data.train.scenes.seed={seed}")];
    let own = own.iter().map(|text| text.to_string());
    let all: Vec<String> = seeded.into_iter().chain(own).chain(overrides.iter().cloned()).collect();
    Ok(TrainConfig::parse(RECIPE, &all)?)
}

/// Trains and evaluates everything, and writes `summary.json`, `report.html` and `strip.png`.
///
/// # Errors
/// An output directory in use; whatever training says.
pub fn run<B: AutodiffBackend, E: Extensions>(
    device: &B::Device,
    options: &Options,
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
        recipe: config(0, &[], &options.overrides)?.to_toml()?,
    };
    let mut pictures = Vec::new();
    for seed in 0..options.seeds {
        let base = config(seed, &[], &options.overrides)?;
        let pruners = registry::<B, E>(device);
        let needs = pruners.build(&base.pruner())?.needs()
            | Needs { cls_attention: true, ..Needs::default() };
        let n = base.model.vision.num_tokens();
        eprintln!(
            "seed {seed}: {n} visual tokens a picture, {} after pruning ({}), {} steps of {} samples",
            base.keep_count(n),
            base.pruner().name,
            base.steps.map_or("all".to_string(), |s| s.to_string()),
            base.batch.window()
        );
        let mut lab = Lab::<B>::new(&base, TEST_SCENES, needs, device, options.progress)?;
        lab.interrupt = options.interrupt.clone();
        eprintln!(
            "tower features of the training set: {:.1} s, shared by all models",
            lab.featurise_seconds()
        );
        let train = |model: &Model| -> anyhow::Result<RunResult> {
            let config = config(seed, model.overrides, &options.overrides)?;
            let dir = run_dir(out, seed, model.name);
            let result = lab.run::<E>(model.name, &config, &dir, options.overwrite)?;
            eprintln!(
                "{:<12} trained in {:>5.0} s   full {:.1} %   pruned {:.1} %",
                model.shown,
                result.train_seconds,
                100.0 * result.accuracy("full"),
                100.0 * result.accuracy("pruned")
            );
            Ok(result)
        };
        let results = MODELS.iter().map(train).collect::<anyhow::Result<Vec<_>>>()?;
        let text_only = train(&TEXT_ONLY)?;
        if seed == 0 {
            pictures = kept_tokens::<B, E>(&run_dir(out, seed, "dualspeed"), &base, device)?;
        }
        summary.seeds.push(seed_result(seed, &results, &text_only, &lab));
    }
    summary.total_seconds = begin.elapsed().as_secs_f64();
    run::write_json(&out.join("summary.json"), &summary.to_json())?;
    run::write_atomic(&out.join("strip.png"), &pictures)?;
    let pruners = shown_pruners(&config(0, &[], &options.overrides)?).join(", ");
    let caption = format!(
        "Top: test pictures. Below, row by row, the visual tokens that {pruners} keep; the others are dimmed."
    );
    let page = report::page(out, &summary, &pictures, &caption)?;
    run::write_atomic(&out.join("report.html"), page.as_bytes())?;
    Ok(summary)
}

fn seed_result<B: AutodiffBackend>(
    seed: u64,
    results: &[RunResult],
    text_only: &RunResult,
    lab: &Lab<B>,
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
        chance: lab.chance(),
        text_only_accuracy: text_only.accuracy("full"),
        featurise_seconds: lab.featurise_seconds(),
    }
}

/// A sheet of test pictures: as they are, and with what three pruners keep in the trained model.
fn kept_tokens<B: AutodiffBackend, E: Extensions>(
    run: &Path,
    config: &TrainConfig,
    device: &B::Device,
) -> anyhow::Result<Vec<u8>> {
    const PICTURES: usize = 6;
    const SIDE: u32 = 168;
    let model = run::load::<B::InnerBackend>(run, device)?;
    let source = crate::lab::test_source(config, PICTURES)?;
    let originals: Vec<_> =
        (0..PICTURES).map(|index| dualspeed_data::render(&source.scene(index))).collect();
    let grid = config.model.vision.grid();
    let keep = config.keep_count(config.model.vision.num_tokens());
    let mut rows = vec![
        originals
            .iter()
            .map(|p| {
                image::imageops::resize(p, SIDE, SIDE, image::imageops::FilterType::CatmullRom)
            })
            .collect::<Vec<_>>(),
    ];
    for name in shown_pruners(config) {
        let pruner = registry::<B::InnerBackend, E>(device).build(&PrunerSpec::new(name))?;
        // What drops tokens inside the decoder has nothing to show before it.
        if pruner.layer_drop(keep).is_some() {
            continue;
        }
        let row = originals.iter().map(|picture| {
            let (shares, _) = kept_patches(
                &*pruner,
                &Eye::Model(&model),
                &source.processor().process(picture),
                &Question::default(),
                (keep, config.seed),
                device,
            )?;
            Ok(strip::shaded(picture, grid, &shares, SIDE))
        });
        rows.push(row.collect::<anyhow::Result<Vec<_>>>()?);
    }
    Ok(strip::png(&strip::contact_sheet(&rows))?)
}

/// The pruners whose picks are shown: the recipe's own, one guided by attention, and a control.
fn shown_pruners(config: &TrainConfig) -> Vec<String> {
    let mut names = vec![config.pruner().name];
    for name in ["fastervlm", "random"] {
        if !names.iter().any(|shown| shown == name) {
            names.push(name.to_string());
        }
    }
    names
}

/// What is printed at the end.
pub fn conclusion(summary: &Summary, out: &Path) -> String {
    let (header, rows) = summary.table();
    let show = |stat| summary.show(stat, 100.0, 1, " %");
    format!(
        "\n{}\n\nchance {}   without pictures {}   tower features {} (once, shared)\n{} and {}",
        plain_table(&header, &rows),
        show(summary.overall(|s| s.chance)),
        show(summary.overall(|s| s.text_only_accuracy)),
        summary.show(summary.overall(|s| s.featurise_seconds), 1.0, 0, " s"),
        out.join("report.html").display(),
        out.join("summary.json").display()
    )
}
