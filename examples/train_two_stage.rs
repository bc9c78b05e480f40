//! The two-stage recipe on what quickstart made, scored before and after. Stage 1 trains projector and isolator on
//! answers without their questions (template `plain`), always fast; stage 2 adds the language model by LoRA, fast
//! and slow.
//! `cargo run --release -- quickstart`, then
//! `cargo run --release --example train_two_stage [-- RUN_DIR]`

use std::path::{Path, PathBuf};

use dualspeed::data::{Template, source_registry};
use dualspeed::experiment::{evaluation_views, scene_config, test_source};
use dualspeed::model::Parts;
use dualspeed::prelude::*;
use dualspeed::run_dir;
use dualspeed::train::{EvalOptions, Stage};

const STEPS: u64 = 20;
const SCENES: usize = 256;

fn two_stages<B: AutodiffBackend>(first: &Path, device: &B::Device) -> anyhow::Result<()> {
    let base = run_dir::read_config(first)?;
    score::<B>("quickstart", first, &base, device)?;
    let out = first.with_file_name("two_stage");

    let mut config = base.clone();
    config.stage = Stage::Pretrain; // projector and isolator, fast only
    config.init_from = Some(first.canonicalize()?);
    (config.steps, config.epochs) = (Some(STEPS), None);
    config.data.train.samples = Some(SCENES);
    let mut scenes = scene_config(&base)?;
    scenes.template = Template::Plain;
    config.data.train.scenes = Some(scenes);
    config.mode.schedule = None; // as published for the stage
    config.optim.lr = Some(1e-4);
    let stage1 = stage::<B>(config.clone(), &out.join("stage1"), device)?;
    score::<B>("stage 1", &stage1, &base, device)?;

    config.stage = Stage::Finetune; // and the language model, through adapters
    config.init_from = Some(stage1.canonicalize()?);
    config.data = base.data.clone();
    config.data.train.samples = Some(SCENES);
    config.model.lora = Some(serde_json::from_value(serde_json::json!({"r": 8, "alpha": 16.0}))?);
    let stage2 = stage::<B>(config, &out.join("stage2"), device)?;
    score::<B>("stage 2", &stage2, &base, device)
}

fn stage<B: AutodiffBackend>(
    config: TrainConfig,
    dir: &Path,
    device: &B::Device,
) -> anyhow::Result<PathBuf> {
    // The model that `init_from` ended with.
    let model: Llava<B> = run_dir::initial_model(&config, &Parts::default(), device)?;
    let source =
        config.data.train.open(&config.model, config.seed, config.compat, &source_registry())?;
    train(TrainJob { overwrite: true, ..TrainJob::new(config, model, source, dir) })?;
    Ok(dir.to_path_buf())
}

fn score<B: AutodiffBackend>(
    name: &str,
    dir: &Path,
    base: &TrainConfig,
    device: &B::Device,
) -> anyhow::Result<()> {
    let model: Llava<B::InnerBackend> = run_dir::load_model(dir, &Parts::default(), device)?;
    let (test, views) = (test_source(base, 128)?, evaluation_views(base));
    let pruner = Registry::<B::InnerBackend>::default().build(&base.pruner())?;
    let options = EvalOptions::default();
    let report = evaluate(&model, &test, None, &views, Some(&*pruner), device, options)?;
    let accuracy = |view| report.view(view).map_or(0.0, |v| 100.0 * v.accuracy);
    println!("{name:<12} full {:.1} %   pruned {:.1} %", accuracy("full"), accuracy("pruned"));
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| PathBuf::from("runs/quickstart/seed-0/dualspeed"));
    anyhow::ensure!(
        dir.join("config.toml").is_file(),
        "{} is no run directory; run `cargo run --release -- quickstart` first, or give a run",
        dir.display()
    );
    two_stages::<burn::backend::Autodiff<burn_ndarray::NdArray<f32>>>(&dir, &Default::default())
}
