//! What a run refuses, and how it says so.

use dualspeed_train::{TrainError, TrainJob, load_trained, train};

use crate::support::{config, job, model, run, scenes};

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
    // With the rates that follow the base rate.
    let rates = ["isolator_lr", "lr", "newline_lr", "projector_lr"];
    assert_eq!(
        differing,
        rates.map(|rate| {
            format!(
                "optim.{rate} is 0.5, was 0.001: the moments were gathered, and the rate has decayed, as it says"
            )
        })
    );

    let mut foreign = TrainJob::new(config(), model(&config()), scenes(13), dir.path());
    foreign.resume = true;
    assert!(matches!(train(foreign), Err(TrainError::ForeignCheckpoint { .. })));

    let mut nothing = job(config(), &dir.path().join("nothing"));
    nothing.resume = true;
    assert!(matches!(train(nothing), Err(TrainError::NoCheckpoint { .. })));
}

#[test]
fn losses_that_are_no_numbers_end_the_run_with_the_samples() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    config.steps = Some(20);
    config.optim.lr = Some(1e30);
    config.optim.warmup_ratio = 0.0;
    config.optim.max_skipped = 2;
    // In fast steps pruners look first; in slow ones there is a loss.
    for schedule in ["always_fast", "always_slow"] {
        config.mode.schedule = Some(schedule.into());
        let error = train(job(config.clone(), &dir.path().join(schedule))).err().unwrap();
        let TrainError::Ended { error, .. } = error else { panic!("{error:?}") };
        match *error {
            TrainError::TooManySkipped { in_a_row: 2, step, samples, reason } => {
                assert!(step >= 2 && samples.len() == 4, "{step} {samples:?}");
                assert!(!reason.is_empty());
            }
            other => panic!("{other:?}"),
        }
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
fn a_checkpoint_of_an_earlier_format_is_refused_with_advice() {
    let dir = tempfile::tempdir().unwrap();
    let trained = run(config(), dir.path());
    let state = dir.path().join("checkpoints/step-00000004/state.json");
    let text = std::fs::read_to_string(&state).unwrap();
    assert!(text.contains("\"format\": 3"));
    std::fs::write(&state, text.replace("\"format\": 3", "\"format\": 2")).unwrap();
    // It had none.
    std::fs::remove_file(state.with_file_name("checksums.json")).unwrap();
    let mut again = job(config(), dir.path());
    again.resume = true;
    let resumed = train(again).err().unwrap();
    let loaded = load_trained(trained.model, dir.path()).err().unwrap();
    for error in [resumed, loaded] {
        assert!(matches!(error, TrainError::CheckpointFormat { found: 2, .. }), "{error:?}");
        assert!(error.to_string().contains("another run directory"), "{error}");
    }
    // Nothing of the earlier run is touched.
    assert!(state.is_file());
}
