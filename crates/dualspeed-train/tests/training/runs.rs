//! What a run leaves behind: checkpoints, records, learning, validation.

use std::sync::Arc;

use burn::module::AutodiffModule;
use dualspeed_data::{ExampleSource, SceneConfig, SceneSource};
use dualspeed_model::vision::features::CLS_ATTENTION;
use dualspeed_model::{Llava, Needs, Registry, View};
use dualspeed_train::{
    EvalOptions, EvalView, FeatureCache, METRICS_FILE, Mode, TowerConfig, TrainConfig, TrainError,
    TrainJob, VALIDATION_FILE, evaluate, read_metrics, train, train_tower,
};

use crate::support::{
    Inner, Train, config, job, largest_difference, model, one_step, run, scenes, timeless, weights,
};

#[test]
fn a_resumed_run_is_the_uninterrupted_run() {
    let dir = tempfile::tempdir().unwrap();
    let (whole_dir, parts_dir) = (dir.path().join("whole"), dir.path().join("parts"));
    let whole = run(config(), &whole_dir);
    assert!(!whole.interrupted && whole.steps == 4);

    // One step, a checkpoint, the end.
    let first = train(one_step(job(config(), &parts_dir))).unwrap();
    assert!(first.interrupted);
    assert_eq!(first.steps, 1);
    assert!(parts_dir.join("checkpoints/step-00000001/state.json").is_file());
    // A crash after the checkpoint leaves records that the resumed run writes again.
    let metrics = parts_dir.join(METRICS_FILE);
    let line = std::fs::read_to_string(whole_dir.join(METRICS_FILE)).unwrap();
    std::fs::write(&metrics, line.lines().take(2).collect::<Vec<_>>().join("\n")).unwrap();

    let mut second = job(config(), &parts_dir);
    second.resume = true;
    let second = train(second).unwrap();
    assert_eq!((second.steps, second.interrupted), (4, false));
    assert_eq!(weights(&whole.model), weights(&second.model));
    assert_eq!(timeless(&whole_dir), timeless(&parts_dir));
    let tensors = "checkpoints/step-00000004/trainable.safetensors";
    assert_eq!(
        std::fs::read(whole_dir.join(tensors)).unwrap(),
        std::fs::read(parts_dir.join(tensors)).unwrap()
    );
    assert!(second.totals.train_seconds > first.totals.train_seconds);
}

#[test]
fn the_same_seed_gives_the_same_metrics() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["a", "b"] {
        run(config(), &dir.path().join(name));
    }
    run(TrainConfig { seed: 4, ..config() }, &dir.path().join("c"));
    let [a, b, c] = ["a", "b", "c"].map(|name| timeless(&dir.path().join(name)));
    assert_eq!(a, b);
    assert_ne!(a, c);
}

#[test]
fn records_say_what_ran() {
    let dir = tempfile::tempdir().unwrap();
    let outcome = run(config(), dir.path());
    let records = read_metrics(&dir.path().join(METRICS_FILE)).unwrap();
    let modes: Vec<Mode> = records.iter().map(|record| record.mode).collect();
    assert_eq!(modes, [Mode::Fast, Mode::Slow, Mode::Fast, Mode::Slow]);
    for record in &records {
        assert_eq!((record.samples, record.visual_tokens), (4, 64));
        assert!(record.supervised_tokens > 0 && record.grad_norm > 0.0);
        if record.mode == Mode::Fast {
            assert_eq!((record.kl, record.kl_tokens, record.visual_tokens_kept), (0.0, 0, 16));
            assert!(record.tokens < record.tokens_unpruned);
        } else {
            assert_eq!(record.kl_tokens, record.supervised_tokens);
            assert!(record.kl > 0.0 && record.visual_tokens_kept == 64);
            assert!((record.loss - record.ce - record.kl).abs() < 1e-6);
            assert_eq!(record.tokens, record.tokens_unpruned);
        }
        let parts = record.time.split.total();
        assert!(parts > 0.0 && parts <= record.time.step_seconds * 1.001);
    }
    assert_eq!(records[3].slow_share, 0.5);
    assert_eq!((outcome.totals.slow_steps, outcome.totals.samples), (2, 16));
}

#[test]
fn a_batch_can_be_memorised_and_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.steps = Some(60);
    config.optim.lr = Some(1e-2);
    config.mode.every = 4;
    let source = scenes(4);
    let job = TrainJob::new(config.clone(), model(&config), source.clone(), dir.path());
    let outcome = train(job).unwrap();
    let records = read_metrics(&dir.path().join(METRICS_FILE)).unwrap();
    let (first, last) = (records[0].ce, records[59].ce);
    assert!(last < 0.2 * first, "{first} -> {last}");

    let pruner = Registry::<Inner>::builtin().build(&config.pruner()).unwrap();
    let views = [EvalView::new("full", View::Full), EvalView::new("pruned", config.fast_view(16))];
    let device = Default::default();
    let evaluate_on = |model: &Llava<Inner>| {
        let options = EvalOptions { batch: 3, ..EvalOptions::default() };
        evaluate(model, &*source, None, &views, Some(&*pruner), &device, options).unwrap()
    };
    let trained = evaluate_on(&outcome.model);
    let untrained = evaluate_on(&model(&config).valid());
    let (full, pruned) = (trained.view("full").unwrap(), trained.view("pruned").unwrap());
    assert!(full.accuracy > 0.9 && full.accuracy > untrained.views[0].accuracy + 0.3);
    assert_eq!((full.visual_tokens, pruned.visual_tokens), (16.0, 4.0));
    assert_eq!(full.questions, full.by_kind.values().map(|kind| kind.questions).sum::<usize>());
    assert!(full.questions > 8 && full.ce < untrained.views[0].ce);
}

#[test]
fn cached_features_train_like_pixels() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    // Needs the attention of the class token as well.
    config.pruning.pruner.name = "fastervlm".into();
    let pixels = run(config.clone(), &dir.path().join("pixels"));
    let tower = model(&config).valid().vision_tower;
    let needs = Needs::of([CLS_ATTENTION]);
    let source = scenes(12);
    let device = Default::default();
    let cache =
        FeatureCache::compute::<Inner, _>(&*tower, &source, needs.clone(), 5, &device, false)
            .unwrap();
    assert_eq!((cache.len(), cache.source().len()), (12, 12));
    let mut job = job(config.clone(), &dir.path().join("cached"));
    job.features = Some(Arc::new(cache));
    let cached = train(job).unwrap();
    let difference = largest_difference(&weights(&pixels.model), &weights(&cached.model));
    assert!(difference < 1e-5, "{difference}");

    // A cache of other images is an error that names the sample, not a panic.
    let other: Arc<dyn ExampleSource> = Arc::new(
        SceneSource::new(
            SceneConfig {
                image_size: 56,
                grid: 2,
                max_objects: 3,
                classes: 8,
                seed: 9,
                ..SceneConfig::default()
            },
            4,
        )
        .unwrap(),
    );
    let cache =
        FeatureCache::compute::<Inner, _>(&*tower, &other, needs, 4, &device, false).unwrap();
    let mut job = self::job(config, &dir.path().join("wrong"));
    job.features = Some(Arc::new(cache));
    let error = train(job).err().unwrap();
    assert!(matches!(error, TrainError::FeatureMissing { .. }), "{error}");
}

#[test]
fn validation_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.validation.every = 2;
    config.validation.samples = Some(5);
    let mut job = job(config, dir.path());
    job.valid = Some(scenes(8));
    train(job).unwrap();
    let text = std::fs::read_to_string(dir.path().join(VALIDATION_FILE)).unwrap();
    let steps: Vec<u64> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["step"].as_u64().unwrap()
        })
        .collect();
    assert_eq!(steps, [2, 4]);
}

#[test]
fn a_tower_learns_to_name_patches() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tower.safetensors");
    let mut config = TowerConfig {
        vision: self::config().model.vision.vit().unwrap().clone(),
        steps: 0,
        batch: 16,
        valid_scenes: 32,
        lr: 3e-3,
        report_every: 10,
        ..TowerConfig::default()
    };
    (config.scenes.grid, config.scenes.max_objects, config.scenes.classes) = (2, 3, 8);
    let device = Default::default();
    let untrained = train_tower::<Train>(&config, &device, None, false).unwrap().valid;
    config.steps = 60;
    let trained = train_tower::<Train>(&config, &device, Some(&out), false).unwrap().valid;
    assert!(trained.loss < 0.8 * untrained.loss, "{untrained:?} {trained:?}");
    assert!(trained.patch_accuracy > untrained.patch_accuracy);
    assert!(out.is_file());
}
