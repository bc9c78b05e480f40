//! What a run writes down is the run: from its `config.toml` it can be had again.

use dualspeed_model::{Compat, LoraConfig};
use dualspeed_train::{CONFIG_FILE, Stage, TrainConfig, TrainError, train};

use crate::support::{config, job, run, timeless, weights};

/// A config that leaves everything to the stage that can be left to it.
fn left_to(stage: Stage) -> TrainConfig {
    let mut config = TrainConfig { stage, ..config() };
    config.mode.schedule = None;
    config.mode.slow_mode_ratio = 0.5;
    config.model.lora =
        (stage == Stage::Finetune).then(|| LoraConfig { r: 2, ..LoraConfig::default() });
    config
}

#[test]
fn a_run_from_the_config_that_a_run_wrote_is_the_same_run() {
    let epoch = TrainConfig { steps: None, ..left_to(Stage::Single) };
    let official = TrainConfig { compat: Compat::Official, ..left_to(Stage::Finetune) };
    let tower = TrainConfig { train_vision_tower: true, ..left_to(Stage::Pretrain) };
    for (name, config) in [
        ("single", left_to(Stage::Single)),
        ("pretrain", left_to(Stage::Pretrain)),
        ("finetune", left_to(Stage::Finetune)),
        ("an epoch", epoch),
        ("official", official),
        ("tower", tower),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (first_dir, second_dir) = (dir.path().join("first"), dir.path().join("second"));
        let first = run(config, &first_dir);
        let written = TrainConfig::load(&first_dir.join(CONFIG_FILE), &[]).unwrap();
        let second = run(written, &second_dir);
        assert!(first.steps >= 3);
        assert_eq!(timeless(&first_dir), timeless(&second_dir), "{name}");
        assert_eq!(weights(&first.model), weights(&second.model), "{name}");
        let text = |dir: &std::path::Path| std::fs::read_to_string(dir.join(CONFIG_FILE)).unwrap();
        assert_eq!(text(&first_dir), text(&second_dir), "{name}");
    }
}

#[test]
fn what_the_stage_decides_is_written_out() {
    let dir = tempfile::tempdir().unwrap();
    run(left_to(Stage::Pretrain), dir.path());
    let text = std::fs::read_to_string(dir.path().join(CONFIG_FILE)).unwrap();
    let written: toml::Table = text.parse().unwrap();
    assert_eq!(written["stage"].as_str(), Some("pretrain"));
    assert_eq!(written["mode"]["schedule"].as_str(), Some("always_fast"));
    for (key, rate) in [
        ("lr", 1e-3),
        ("projector_lr", 1e-3),
        ("newline_lr", 1e-3),
        ("isolator_lr", 1e-3),
        ("vision_tower_lr", 2e-6),
    ] {
        assert_eq!(written["optim"][key].as_float(), Some(rate), "{key}");
    }

    // A run that was left to the stage goes on from the file as well, and the other way round.
    let resumed = |config: TrainConfig| {
        let mut job = job(config, dir.path());
        job.resume = true;
        train(job)
    };
    let written = TrainConfig::load(&dir.path().join(CONFIG_FILE), &[]).unwrap();
    assert_eq!(resumed(written).unwrap().steps, 4);
    assert_eq!(resumed(left_to(Stage::Pretrain)).unwrap().steps, 4);
    let other = resumed(left_to(Stage::Single)).err().unwrap();
    assert!(matches!(other, TrainError::ForeignCheckpoint { .. }), "{other:?}");
}
