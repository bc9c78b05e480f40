//! Whole runs of tiny models: what a trainer promises.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::backend::Autodiff;
use burn::module::{AutodiffModule, Module, ModuleVisitor, Param};
use burn::tensor::{Tensor, backend::Backend};
use burn_ndarray::NdArray;
use dualspeed_data::{ExampleSource, SceneConfig, SceneSource, scene_tokenizer};
use dualspeed_model::{
    LlamaConfig, Llava, LlavaConfig, LoraConfig, Needs, Registry, View, VitConfig,
};
use dualspeed_train::config::Schedule;
use dualspeed_train::optim::{Group, trainable_params};
use dualspeed_train::stage::apply_stage;
use dualspeed_train::{
    EvalOptions, EvalView, FeatureCache, METRICS_FILE, Mode, Stage, TowerConfig, TrainConfig,
    TrainError, TrainJob, TrainOutcome, VALIDATION_FILE, evaluate, load_trained, read_metrics,
    train, train_tower,
};

type Inner = NdArray<f32>;
type Train = Autodiff<Inner>;

/// 16 patches of 56 x 56 pixels, two layers of width 32; periodic slow steps, so that both modes
/// run.
fn config() -> TrainConfig {
    let vocab_size = scene_tokenizer().unwrap().vocab_size();
    let mut config = TrainConfig {
        seed: 3,
        steps: Some(4),
        model: LlavaConfig {
            vision: VitConfig {
                hidden_size: 16,
                intermediate_size: 32,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                image_size: 56,
                projection_dim: Some(8),
                ..VitConfig::default()
            },
            text: LlamaConfig {
                hidden_size: 32,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                intermediate_size: 48,
                vocab_size,
                ..LlamaConfig::default()
            },
            isolator_length: 2,
            ..LlavaConfig::default()
        },
        ..TrainConfig::default()
    };
    config.mode.schedule = Some(Schedule::Periodic);
    config.mode.every = 2;
    config.pruning.ratio = 0.75;
    config.batch.size = 4;
    config.checkpoint.every = 0;
    config
}

fn scenes(count: usize) -> Arc<dyn ExampleSource> {
    let config = SceneConfig {
        image_size: 56,
        grid: 2,
        max_objects: 3,
        classes: 8,
        turns: 3,
        ..SceneConfig::default()
    };
    Arc::new(SceneSource::new(config, count).unwrap())
}

fn model(config: &TrainConfig) -> Llava<Train> {
    config.model.init(&Default::default(), config.seed).unwrap()
}

fn job(config: TrainConfig, run_dir: &Path) -> TrainJob<Train> {
    let model = model(&config);
    TrainJob::new(config, model, scenes(12), run_dir)
}

fn run(config: TrainConfig, run_dir: &Path) -> TrainOutcome<Train> {
    train(job(config, run_dir)).unwrap()
}

/// Every parameter of a model, in order.
fn weights<B: Backend, M: Module<B>>(model: &M) -> Vec<f32> {
    struct Collect(Vec<f32>);
    impl<B: Backend> ModuleVisitor<B> for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.extend(param.val().into_data().iter::<f32>());
        }
    }
    let mut collect = Collect(Vec::new());
    model.visit(&mut collect);
    collect.0
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// `metrics.jsonl` without what depends on the clock.
fn timeless(run_dir: &Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run_dir.join(METRICS_FILE)).unwrap();
    let record = |line: &str| {
        let mut value: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(value.as_object_mut().unwrap().remove("time").is_some());
        value
    };
    text.lines().map(record).collect()
}

#[test]
fn batch_and_accumulation_make_the_same_update() {
    let dir = tempfile::tempdir().unwrap();
    let mut results = Vec::new();
    for (size, accumulation) in [(8, 1), (4, 2), (2, 4), (3, 3)] {
        let mut config = config();
        (config.batch.size, config.batch.accumulation) = (size, accumulation);
        // AdamW divides by the gradient's size: with the usual epsilon, rounding errors of
        // gradients near 0 would show as whole steps.
        config.optim.eps = 1e-3;
        let outcome = run(config, &dir.path().join(format!("{size}x{accumulation}")));
        results.push((size, weights(&outcome.model)));
    }
    let (_, whole) = &results[0];
    for (size, split) in &results[1..3] {
        let difference = largest_difference(whole, split);
        assert!(difference < 2e-6, "micro-batches of {size}: {difference}");
    }
    // Nine samples a step are other steps: the comparison above can fail.
    assert!(largest_difference(whole, &results[3].1) > 1e-4);
}

#[test]
fn the_last_short_window_is_an_update_too() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    // 12 samples in windows of 8: the second window of each epoch has 4, in 2 micro-batches.
    (config.steps, config.epochs) = (None, Some(1));
    (config.batch.size, config.batch.accumulation) = (2, 4);
    let outcome = run(config, dir.path());
    let samples: Vec<usize> =
        read_metrics(&dir.path().join(METRICS_FILE)).unwrap().iter().map(|r| r.samples).collect();
    assert_eq!((outcome.steps, samples), (2, vec![8, 4]));
}

#[test]
fn a_resumed_run_is_the_uninterrupted_run() {
    let dir = tempfile::tempdir().unwrap();
    let (whole_dir, parts_dir) = (dir.path().join("whole"), dir.path().join("parts"));
    let whole = run(config(), &whole_dir);
    assert!(!whole.interrupted && whole.steps == 4);

    // The flag is up from the start: one step, a checkpoint, the end.
    let mut first = job(config(), &parts_dir);
    first.interrupt = Arc::new(AtomicBool::new(true));
    let first = train(first).unwrap();
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
fn slow_without_distillation_is_plain_full_training() {
    let dir = tempfile::tempdir().unwrap();
    let slow = |name: &str, ratio: f64| {
        let mut config = config();
        config.mode.schedule = Some(Schedule::AlwaysSlow);
        config.distill.lambda = 0.0;
        config.pruning.ratio = ratio;
        weights(&run(config, &dir.path().join(name)).model)
    };
    let whole = slow("p 0.9", 0.9);
    assert_eq!(whole, slow("p 0.5", 0.5));
    // Fast steps that prune nothing and have no isolator are the same thing.
    let mut config = config();
    config.mode.schedule = Some(Schedule::AlwaysFast);
    config.pruning.ratio = 0.0;
    config.isolator.enabled = false;
    assert_eq!(whole, weights(&run(config, &dir.path().join("p 0")).model));
}

#[test]
fn naive_prune_has_no_isolator_and_no_slow_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.mode.schedule = Some(Schedule::AlwaysFast);
    config.model.isolator_length = 0;
    let view = config.fast_view(16);
    assert_eq!(view, View::Pruned { keep: 4, isolator: false });
    let outcome = run(config, dir.path());
    assert!(outcome.model.mode_isolator.is_none());
    assert_eq!(outcome.totals.slow_steps, 0);
}

#[test]
fn each_stage_trains_its_groups_and_nothing_else() {
    let groups = |stage: Stage, lora: bool| {
        let mut config = TrainConfig { stage, ..config() };
        config.model.lora = lora.then(|| LoraConfig { r: 2, ..LoraConfig::default() });
        let model = apply_stage(model(&config), &config).unwrap();
        let mut groups: Vec<Group> =
            trainable_params(&model).iter().map(|param| param.group).collect();
        groups.sort();
        groups.dedup();
        groups
    };
    use Group::{Isolator, LanguageModel, Projector};
    assert_eq!(groups(Stage::Pretrain, false), [Projector, Isolator]);
    assert_eq!(groups(Stage::Pretrain, true), [Projector, Isolator]);
    assert_eq!(groups(Stage::Finetune, true), [Projector, Isolator, LanguageModel]);
    assert_eq!(groups(Stage::Single, false), [Projector, Isolator, LanguageModel]);

    let config = TrainConfig { stage: Stage::Pretrain, ..config() };
    assert_eq!(config.fast_view(16), View::Pruned { keep: 4, isolator: true });
    let lora = |stage: Stage| {
        let mut config = TrainConfig { stage, ..config.clone() };
        config.model.lora = Some(LoraConfig { r: 2, ..LoraConfig::default() });
        let model = apply_stage(model(&config), &config).unwrap();
        trainable_params(&model).iter().filter(|param| param.path.contains("lora")).count()
    };
    assert_eq!(lora(Stage::Pretrain), 0);
    assert!(lora(Stage::Finetune) > 0);
}

#[test]
fn two_stages_in_a_row() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = TrainConfig { stage: Stage::Pretrain, ..config() };
    first.mode.schedule = None;
    let before = model(&first);
    let outcome = run(first.clone(), &dir.path().join("1"));
    // Stage 1 as published is fast-only, and leaves the language model alone.
    assert_eq!(outcome.totals.slow_steps, 0);
    let (lm_before, lm_after) =
        (weights(&before.language_model), weights(&outcome.model.language_model));
    assert_eq!(lm_before, lm_after);

    let lora = LoraConfig { r: 2, dropout: 0.1, ..LoraConfig::default() };
    let mut second = TrainConfig { stage: Stage::Finetune, ..config() };
    second.model.lora = Some(lora.clone());
    let device = Default::default();
    let model =
        Llava::<Train>::from_inner(outcome.model).with_lora(&lora, &device, second.seed).unwrap();
    let job = TrainJob::new(second.clone(), model.clone(), scenes(12), dir.path().join("2"));
    let outcome = train(job).unwrap();
    assert_eq!(outcome.totals.slow_steps, 2);
    assert_eq!(lm_before, weights(&outcome.model.language_model));
    assert!(weights(&outcome.model.lora) != weights(&model.lora));

    // What the checkpoint holds is all that changed.
    let (restored, step) =
        load_trained(apply_stage(model, &second).unwrap(), &dir.path().join("2")).unwrap();
    assert_eq!(step, 4);
    assert_eq!(weights(&restored), weights(&outcome.model));
}

#[test]
fn cached_features_train_like_pixels() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    // Needs the attention of the class token as well.
    config.pruning.pruner.name = "fastervlm".into();
    let pixels = run(config.clone(), &dir.path().join("pixels"));
    let tower = model(&config).valid().vision_tower;
    let needs = Needs { cls_attention: true, ..Needs::default() };
    let source = scenes(12);
    let device = Default::default();
    let cache =
        FeatureCache::compute::<Inner, _>(&*tower, &source, needs, 5, &device, false).unwrap();
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
fn a_directory_in_use_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let foreign = dir.path().join("notes.txt");
    std::fs::write(&foreign, "mine").unwrap();
    let error = train(job(config(), dir.path())).err().unwrap();
    assert!(matches!(error, TrainError::RunDirExists { .. }));
    assert!(error.to_string().contains("--overwrite"), "{error}");
    let mut over = job(config(), dir.path());
    over.overwrite = true;
    train(over).unwrap();
    assert_eq!(std::fs::read_to_string(foreign).unwrap(), "mine");
}

#[test]
fn a_checkpoint_of_another_config_or_data_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    run(config(), dir.path());
    let mut other = config();
    other.optim.lr = Some(0.5);
    other.checkpoint.keep = 7;
    let mut foreign = job(other, dir.path());
    foreign.resume = true;
    let Err(TrainError::ForeignCheckpoint { differing, .. }) = train(foreign) else {
        panic!("resumed with another config")
    };
    assert_eq!(differing, ["optim.lr (checkpoint: null, config: 0.5)"]);

    let mut foreign = TrainJob::new(config(), model(&config()), scenes(13), dir.path());
    foreign.resume = true;
    assert!(matches!(train(foreign), Err(TrainError::ForeignCheckpoint { .. })));

    let mut nothing = job(config(), &dir.path().join("nothing"));
    nothing.resume = true;
    assert!(matches!(train(nothing), Err(TrainError::NoCheckpoint { .. })));
}

#[test]
fn a_loss_that_is_no_number_stops_the_run_with_the_samples() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.optim.lr = Some(1e30);
    config.optim.warmup_ratio = 0.0;
    match train(job(config, dir.path())).err() {
        Some(TrainError::NonFiniteLoss { step, samples, .. }) => {
            assert!(step >= 1 && samples.len() == 4, "{step} {samples:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_unknown_pruner_or_an_empty_set_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.pruning.pruner.name = "divprun".into();
    let error = train(job(config.clone(), &dir.path().join("a"))).err().unwrap();
    assert!(error.to_string().contains("divprune"), "{error}");
    config.pruning.pruner.name = "divprune".into();
    let empty = TrainJob::new(config.clone(), model(&config), scenes(0), dir.path().join("b"));
    assert!(matches!(train(empty), Err(TrainError::EmptySource { .. })));
}

#[test]
fn a_tower_learns_to_name_patches() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("tower.safetensors");
    let mut config = TowerConfig {
        vision: self::config().model.vision,
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
