//! Groups of parameters: a learning rate each, and a vision tower that is trained or is not.

use std::sync::Arc;

use burn::backend::Autodiff;
use burn::module::AutodiffModule;
use burn::tensor::DType;
use dualspeed_data::{Example, ExampleSource, MemorySource, Tiling};
use dualspeed_model::{AnyresConfig, Dtype, Llava, LoraConfig, Needs, ParamGroup};
use dualspeed_ops::Backend;
use dualspeed_train::config::CacheMode;
use dualspeed_train::{
    FeatureCache, Stage, TrainConfig, TrainError, TrainJob, VALIDATION_FILE, load_trained, train,
};

use crate::support::{
    Inner, config, job, largest_difference, model, records, run, scenes, weights,
};

/// Scenes whose images are five tiles each: their own picture, and those of the next four as a grid.
fn tiled_scenes(count: usize) -> Arc<dyn ExampleSource> {
    let scenes = scenes(count);
    let examples: Vec<Example> = (0..count).map(|index| scenes.get(index).unwrap()).collect();
    let tiling = Tiling::new([112, 112], &[[112, 112]], 56, 4).unwrap();
    let tiled = (0..count).map(|index| {
        let images = (index..index + 5).flat_map(|next| examples[next % count].images.clone());
        let images: Vec<_> = images.collect();
        assert_eq!((images.len(), tiling.tiles()), (5, 5));
        Example { images, tilings: vec![tiling.clone()], ..examples[index].clone() }
    });
    Arc::new(MemorySource::new(tiled.collect(), "tiled scenes"))
}

/// The parameters of a group.
fn group<B: Backend>(model: &Llava<B>, group: ParamGroup) -> Vec<f32> {
    match group {
        ParamGroup::VisionTower => weights(&model.vision_tower),
        ParamGroup::Projector => weights(&model.mm_projector),
        ParamGroup::Newline => weights(&model.image_newline),
        ParamGroup::Isolator => weights(&model.mode_isolator),
        ParamGroup::LanguageModel => weights(&model.language_model),
        ParamGroup::Lora => weights(&model.lora),
    }
}

#[test]
fn every_group_is_trained_with_its_own_rate() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = TrainConfig {
        stage: Stage::Finetune,
        steps: Some(1),
        train_vision_tower: true,
        ..config()
    };
    config.model.lora = Some(LoraConfig { r: 2, dropout: 0.0, ..LoraConfig::default() });
    let image_grid_pinpoints = vec![[112, 112]];
    config.model.anyres = Some(AnyresConfig { image_grid_pinpoints, ..AnyresConfig::default() });
    let rates = [
        (ParamGroup::VisionTower, 1e-3),
        (ParamGroup::Projector, 2e-3),
        (ParamGroup::Newline, 3e-3),
        (ParamGroup::Isolator, 5e-3),
        (ParamGroup::Lora, 7e-3),
    ];
    let optim = &mut config.optim;
    optim.vision_tower_lr = Some(1e-3);
    optim.projector_lr = Some(2e-3);
    optim.newline_lr = Some(3e-3);
    optim.isolator_lr = Some(5e-3);
    optim.lr = Some(7e-3);
    optim.warmup_ratio = 0.0;
    // Below the smallest of gradients that count.
    optim.eps = 1e-12;
    let before = model(&config).valid();
    let job = TrainJob::new(config.clone(), model(&config), tiled_scenes(6), dir.path());
    let after = train(job).unwrap().model;

    let record = &records(dir.path())[0];
    assert_eq!(record.lr, 7e-3);
    assert_eq!(record.group_lr.keys().copied().collect::<Vec<_>>(), rates.map(|(name, _)| name));
    for (name, rate) in rates {
        let reported = record.group_lr[&name];
        assert!((reported / rate - 1.0).abs() < 1e-12, "{name:?}: {reported}");
        // AdamW's first update is the rate, where there is a gradient.
        let moved = largest_difference(&group(&before, name), &group(&after, name));
        assert!((f64::from(moved) / rate - 1.0).abs() < 1e-2, "{name:?}: {moved}");
    }
    let frozen = ParamGroup::LanguageModel;
    assert_eq!(group(&before, frozen), group(&after, frozen));
}

fn tower_run(name: &str, schedule: &str, train_vision_tower: bool) -> (Vec<f32>, Vec<f32>) {
    let dir = tempfile::tempdir().unwrap();
    let mut config = TrainConfig { train_vision_tower, steps: Some(2), ..config() };
    config.mode.schedule = Some(schedule.into());
    config.optim.vision_tower_lr = Some(1e-3);
    // Scores by the tower's attention: it is asked for more than the hidden state.
    config.pruning.pruner.name = "fastervlm".into();
    let before = model(&config).valid();
    let run_dir = dir.path().join(name);
    let outcome = run(config.clone(), &run_dir);
    // What the checkpoint holds is all that changed.
    let (restored, _) = load_trained(model(&config).valid(), &run_dir).unwrap();
    assert_eq!(weights(&restored), weights(&outcome.model));
    let trained = records(&run_dir)[0].group_lr.contains_key(&ParamGroup::VisionTower);
    assert_eq!(trained, train_vision_tower);
    (weights(&before.vision_tower), weights(&outcome.model.vision_tower))
}

#[test]
fn the_tower_is_trained_in_both_modes_where_the_config_says_so() {
    for schedule in ["always_fast", "always_slow"] {
        let (before, after) = tower_run("trained", schedule, true);
        assert!(largest_difference(&before, &after) > 5e-4, "{schedule}");
        assert!(after.iter().all(|weight| weight.is_finite()));
        let (before, after) = tower_run("frozen", schedule, false);
        assert_eq!(before, after, "{schedule}");
    }
}

/// The rest of a model that learns is stored in half precision; the tower, which learns too, is not.
#[test]
fn a_trained_tower_keeps_full_precision() {
    type Half = Autodiff<burn_flex::Flex>;
    let dir = tempfile::tempdir().unwrap();
    let mut config = TrainConfig {
        stage: Stage::Finetune,
        train_vision_tower: true,
        steps: Some(2),
        ..config()
    };
    config.model.dtype = Dtype::BFloat16;
    config.model.lora = Some(LoraConfig { r: 2, ..LoraConfig::default() });
    config.optim.vision_tower_lr = Some(1e-3);
    let model = config.model.init::<Half>(&Default::default(), config.seed).unwrap();
    let before = weights(&model.vision_tower);
    let outcome = train(TrainJob::new(config, model, scenes(8), dir.path())).unwrap();
    let (tower, decoder) = (&outcome.model.vision_tower, &outcome.model.language_model);
    assert_eq!(tower.vit().unwrap().post_layernorm.weight.val().dtype(), DType::F32);
    assert_eq!(decoder.layers[0].mlp.up_proj.weight.val().dtype(), DType::BF16);
    assert!(largest_difference(&before, &weights(tower)) > 5e-4);
}

#[test]
fn features_of_a_tower_that_learns_are_not_cached() {
    let dir = tempfile::tempdir().unwrap();
    let trained = TrainConfig { train_vision_tower: true, ..config() };
    for cache in [CacheMode::Memory, CacheMode::Disk] {
        let mut config = trained.clone();
        config.data.features.cache = cache;
        let error = train(job(config, &dir.path().join("cached"))).err().unwrap();
        assert!(error.to_string().contains("train_vision_tower"), "{error}");
    }
    // Nor are features taken that somebody computed before.
    let source = scenes(12);
    let tower = model(&trained).valid().vision_tower;
    let device = Default::default();
    let cache =
        FeatureCache::compute::<Inner, _>(&*tower, &source, Needs::none(), 4, &device, false);
    let cache = Arc::new(cache.unwrap());
    for of_training in [true, false] {
        let mut job = job(trained.clone(), &dir.path().join("given"));
        match of_training {
            true => job.features = Some(cache.clone()),
            false => job.valid_features = Some(cache.clone()),
        }
        let error = train(job).err().unwrap();
        assert!(matches!(error, TrainError::Config(_)), "{error:?}");
        assert!(error.to_string().contains("leave the tower frozen"), "{error}");
    }
    assert!(!dir.path().join("cached").exists() && !dir.path().join("given").exists());

    // Validation sees the tower as it is: another tower, another loss of the same decoder's first step.
    let validated = |name: &str, rate: f64| {
        let mut config = TrainConfig { steps: Some(1), ..trained.clone() };
        config.optim.vision_tower_lr = Some(rate);
        config.validation.every = 1;
        let mut job = job(config, &dir.path().join(name));
        job.valid = Some(scenes(4));
        train(job).unwrap();
        std::fs::read_to_string(dir.path().join(name).join(VALIDATION_FILE)).unwrap()
    };
    assert_ne!(validated("little", 1e-9), validated("much", 1e-2));
}
