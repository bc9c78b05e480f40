//! What one update is: accumulation, short windows, modes, stages.

use std::collections::BTreeSet;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::DType;
use dualspeed_model::nn::params::trainable_parameters;
use dualspeed_model::{Dtype, Llava, LoraConfig, ParamGroup, View};
use dualspeed_train::config::{MemoryConfig, RecomputeMode};
use dualspeed_train::{
    METRICS_FILE, Stage, TrainConfig, TrainJob, load_trained, read_metrics, train,
};

use crate::support::{Train, config, job, largest_difference, model, run, scenes, weights};

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
fn slow_without_distillation_is_plain_full_training() {
    let dir = tempfile::tempdir().unwrap();
    let slow = |name: &str, ratio: f64| {
        let mut config = config();
        config.mode.schedule = Some("always_slow".into());
        config.distill.lambda = 0.0;
        config.pruning.ratio = ratio;
        run(config, &dir.path().join(name)).model
    };
    let whole = slow("p 0.9", 0.9);
    assert_eq!(weights(&whole), weights(&slow("p 0.5", 0.5)));
    // Fast steps that prune nothing and have no isolator are the same thing.
    let mut config = config();
    config.mode.schedule = Some("always_fast".into());
    config.pruning.ratio = 0.0;
    config.model.isolator_length = 0;
    let plain = run(config, &dir.path().join("p 0")).model;
    // Slow steps have not used theirs.
    let whole = whole.with_isolator_length(0, &Default::default(), 0).unwrap();
    assert_eq!(weights(&whole), weights(&plain));
}

#[test]
fn naive_prune_has_no_isolator_and_no_slow_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.mode.schedule = Some("always_fast".into());
    config.model.isolator_length = 0;
    let view = config.fast_view(16);
    assert_eq!(view, View::Pruned { keep: 4, isolator: false });
    let outcome = run(config, dir.path());
    assert!(outcome.model.mode_isolator.is_none());
    assert_eq!(outcome.totals.slow_steps, 0);
}

/// A model with the parts of it taking gradients that a run of `config` trains.
fn staged(model: Llava<Train>, config: &TrainConfig) -> Llava<Train> {
    model.with_trainable(config.trainable()).unwrap()
}

#[test]
fn each_stage_trains_its_groups_and_nothing_else() {
    let groups = |stage: Stage, lora: bool, train_vision_tower: bool| {
        let mut config = TrainConfig { stage, train_vision_tower, ..config() };
        config.model.lora = lora.then(|| LoraConfig { r: 2, ..LoraConfig::default() });
        let model = staged(model(&config), &config);
        let params = trainable_parameters::<Train, _>(&model, "");
        let groups = params.iter().map(|param| ParamGroup::of(&param.path).unwrap());
        groups.collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>()
    };
    use ParamGroup::{Isolator, LanguageModel, Lora, Projector, VisionTower};
    assert_eq!(groups(Stage::Pretrain, false, false), [Projector, Isolator]);
    assert_eq!(groups(Stage::Pretrain, true, false), [Projector, Isolator]);
    assert_eq!(groups(Stage::Finetune, true, false), [Projector, Isolator, Lora]);
    assert_eq!(groups(Stage::Finetune, false, false), [Projector, Isolator, LanguageModel]);
    assert_eq!(groups(Stage::Single, false, false), [Projector, Isolator, LanguageModel]);
    let tower = [VisionTower, Projector, Isolator, Lora];
    assert_eq!(groups(Stage::Finetune, true, true), tower);

    let config = TrainConfig { stage: Stage::Pretrain, ..config() };
    assert_eq!(config.fast_view(16), View::Pruned { keep: 4, isolator: true });
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
    let (restored, step) = load_trained(staged(model, &second), &dir.path().join("2")).unwrap();
    assert_eq!(step, 4);
    assert_eq!(weights(&restored), weights(&outcome.model));
}

/// Recomputation, fixed or within a budget, changes nothing but the order of a few sums.
#[test]
fn a_run_that_recomputes_is_the_run_that_keeps() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = TrainConfig { stage: Stage::Finetune, ..config() };
    config.model.lora = Some(LoraConfig { r: 2, dropout: 0.1, ..LoraConfig::default() });
    // As above: rounding errors of gradients near 0 must not show as whole steps.
    config.optim.eps = 1e-3;
    let mut weigh = |name: &str, mode: RecomputeMode, budget_gib: Option<f64>| {
        config.memory = MemoryConfig { recompute: mode, budget_gib };
        let outcome = run(config.clone(), &dir.path().join(name));
        (weights(&outcome.model), outcome.memory)
    };
    let (kept, all) = weigh("off", RecomputeMode::Off, None);
    assert_eq!(all.recompute, None);
    for (name, mode, budget) in [
        ("input", RecomputeMode::Input, None),
        ("attention", RecomputeMode::Attention, None),
        // Too little for anything but inputs, and the plan says so.
        ("auto", RecomputeMode::Auto, Some(1e-6)),
    ] {
        let (again, plan) = weigh(name, mode, budget);
        let difference = largest_difference(&kept, &again);
        assert!(difference < 2e-6, "{name}: {difference}");
        assert!(plan.estimate.blocks < all.estimate.blocks && plan.recompute.is_some());
        assert_eq!(plan.to_string().contains("may not fit"), budget.is_some(), "{plan}");
    }
    // Without a budget on a host that does not tell its memory, nothing is recomputed.
    assert_eq!(weigh("host", RecomputeMode::Auto, None).1.recompute, None);
}

/// Frozen weights and activations in bf16, trained weights in f32: the run follows the f32 run, and what a checkpoint
/// holds is f32.
#[test]
fn a_half_precision_run_follows_the_f32_run() {
    type Half = Autodiff<burn_flex::Flex>;
    let dir = tempfile::tempdir().unwrap();
    let losses = |name: &str, dtype: Dtype| {
        let mut config = TrainConfig { stage: Stage::Finetune, steps: Some(12), ..config() };
        config.model.dtype = dtype;
        config.model.lora = Some(LoraConfig { r: 4, dropout: 0.0, ..LoraConfig::default() });
        config.memory.recompute = RecomputeMode::Attention;
        // An epsilon above the gradients: AdamW would turn rounding errors of small ones into whole steps.
        (config.optim.lr, config.optim.projector_lr, config.optim.eps) =
            (Some(4e-3), Some(4e-3), 0.1);
        // Other picks would be another run: these do not depend on the features.
        config.pruning.pruner.name = "uniform".into();
        let model = config.model.init::<Half>(&Default::default(), config.seed).unwrap();
        let path = dir.path().join(name);
        let outcome = train(TrainJob::new(config, model, scenes(4), &path)).unwrap();
        let model = outcome.model;
        let types = [
            model.vision_tower.vit().unwrap().post_layernorm.weight.val().dtype(),
            model.language_model.layers[0].mlp.up_proj.weight.val().dtype(),
            model.mm_projector.mlp().unwrap().linear_1.weight.val().dtype(),
            model.lora.as_ref().unwrap().layers[1].q_proj.as_ref().unwrap().lora_b.val().dtype(),
        ];
        let records = read_metrics(&path.join(METRICS_FILE)).unwrap();
        (types, records.into_iter().map(|record| record.loss).collect::<Vec<f64>>())
    };
    let (_, whole) = losses("f32", Dtype::Float32);
    let (types, half) = losses("bf16", Dtype::BFloat16);
    assert_eq!(types, [DType::BF16, DType::BF16, DType::F32, DType::F32]);
    for (step, (whole, half)) in whole.iter().zip(&half).enumerate() {
        // bf16 has 8 bits of precision.
        assert!((whole - half).abs() < 0.02 * whole, "step {step}: {whole} {half}");
    }
    assert_ne!(whole, half);
    assert!(half[10] < 0.9 * half[0], "{half:?}");

    // ndarray has no bf16, and says so before anything is written.
    let mut config = config();
    config.model.dtype = Dtype::BFloat16;
    let error = train(job(config, &dir.path().join("none"))).err().unwrap();
    assert!(error.to_string().contains("model.dtype"), "{error}");
}
