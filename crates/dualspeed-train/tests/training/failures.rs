//! What goes wrong while a run goes on: samples, numbers, reads that hang, signals. Nothing that was done is lost.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use burn::module::AutodiffModule;
use dualspeed_data::{DataError, ExampleSource, HostImage};
use dualspeed_train::config::CacheMode;
use dualspeed_train::{
    METRICS_FILE, Mode, SavedSteps, TrainConfig, TrainError, TrainJob, VALIDATION_FILE,
    load_trained, read_metrics, train,
};
use serde_json::Value;

use crate::support::{
    Hook, Hooked, Train, config, hooked, job, model, one_step, run, scenes, timeless, weights,
};

fn on(
    source: Arc<dyn ExampleSource>,
    config: TrainConfig,
    run_dir: &Path,
    resume: bool,
) -> TrainJob<Train> {
    TrainJob { resume, train: source, ..job(config, run_dir) }
}

fn unreadable() -> DataError {
    let source = std::io::Error::other("the file ends early");
    DataError::Read { path: "some.jpg".into(), source }
}

/// Six steps, fast and slow in turn; samples are read in their order.
fn six() -> TrainConfig {
    let mut config = TrainConfig { steps: Some(6), ..config() };
    config.data.workers = Some(1);
    config
}

fn checkpoint(run_dir: &Path, step: u64) -> Vec<u8> {
    fs::read(run_dir.join(format!("checkpoints/step-{step:08}/trainable.safetensors"))).unwrap()
}

/// Reads that have failed, or that hang, from the `n`-th example on.
fn after(n: usize, what: impl FnMut() -> Result<(), DataError> + Send + 'static) -> Box<Hook> {
    let (count, what) = (AtomicUsize::new(0), Mutex::new(what));
    Box::new(move |_, _| match count.fetch_add(1, Ordering::SeqCst) >= n {
        true => (what.lock().unwrap())(),
        false => Ok(()),
    })
}

#[test]
fn an_error_saves_the_steps_that_are_done() {
    let dir = tempfile::tempdir().unwrap();
    let (whole_dir, run_dir) = (dir.path().join("whole"), dir.path().join("run"));
    run(six(), &whole_dir);

    let broken = Arc::new(Hooked { scenes: scenes(12), hook: after(15, || Err(unreadable())) });
    let error = train(on(broken, six(), &run_dir, false)).err().unwrap();
    let TrainError::Ended { error: cause, saved } = &error else { panic!("{error:?}") };
    assert!(matches!(**cause, TrainError::Data(DataError::Read { .. })), "{cause}");
    assert_eq!(*saved, SavedSteps::All { step: 3, run: run_dir.clone() });
    let message = error.to_string();
    for words in ["some.jpg", "all 3 steps are saved", "--resume"] {
        assert!(message.contains(words), "{message}");
    }

    // A reader that panics is no other case; nothing new is done, the checkpoint is still named.
    let panics = hooked(|_, _| panic!("a bug in a reader"));
    let error = train(on(panics, six(), &run_dir, true)).err().unwrap();
    assert!(
        matches!(error, TrainError::Ended { saved: SavedSteps::All { step: 3, .. }, .. }),
        "{error:?}"
    );

    assert_eq!(train(on(scenes(12), six(), &run_dir, true)).unwrap().steps, 6);
    assert_eq!(timeless(&run_dir), timeless(&whole_dir));
    assert_eq!(checkpoint(&run_dir, 6), checkpoint(&whole_dir, 6));
}

#[test]
fn an_error_in_validation_saves_too_and_the_validation_is_made_up() {
    let dir = tempfile::tempdir().unwrap();
    let (whole_dir, run_dir) = (dir.path().join("whole"), dir.path().join("run"));
    let mut config = six();
    config.validation.every = 2;
    let with = |valid, run_dir: &Path, resume| {
        let job = TrainJob { valid: Some(valid), ..job(config.clone(), run_dir) };
        train(TrainJob { resume, ..job })
    };
    with(scenes(5), &whole_dir, false).unwrap();
    let broken = Arc::new(Hooked { scenes: scenes(5), hook: after(7, || Err(unreadable())) });
    let error = with(broken, &run_dir, false).err().unwrap();
    assert!(
        matches!(error, TrainError::Ended { saved: SavedSteps::All { step: 4, .. }, .. }),
        "{error:?}"
    );
    with(scenes(5), &run_dir, true).unwrap();
    let validations = |dir: &Path| fs::read_to_string(dir.join(VALIDATION_FILE)).unwrap();
    assert_eq!(validations(&run_dir), validations(&whole_dir));
    assert_eq!(timeless(&run_dir), timeless(&whole_dir));
}

/// One picture of twelve has values that are not finite: of its steps nothing enters the model, whatever their mode.
#[test]
fn a_step_that_is_not_finite_is_skipped_and_named() {
    let poisoned = || {
        hooked(|index, example| {
            if index == 5 {
                for image in &mut example.images {
                    let mut pixels = image.pixels.clone();
                    pixels[7] = f32::INFINITY;
                    *image = Arc::new(HostImage { key: 1, size: image.size, pixels });
                }
            }
            Ok(())
        })
    };
    let name = scenes(12).get(5).unwrap().id;
    let dir = tempfile::tempdir().unwrap();
    let config = TrainConfig { steps: Some(12), ..config() };
    let outcome = train(on(poisoned(), config.clone(), dir.path(), false)).unwrap();
    assert!(weights(&outcome.model).iter().all(|weight| weight.is_finite()));

    let records = read_metrics(&dir.path().join(METRICS_FILE)).unwrap();
    let skipped: Vec<_> = records.iter().filter(|record| record.skipped.is_some()).collect();
    // Once an epoch of three steps.
    assert_eq!((records.len(), skipped.len()), (12, 4));
    assert_eq!(outcome.totals.skipped_steps, 4);
    assert_eq!(records.last().unwrap().skipped_steps, 4);
    let modes = [Mode::Fast, Mode::Slow].map(|mode| skipped.iter().any(|r| r.mode == mode));
    assert_eq!(modes, [true, true]);
    for record in &records {
        let is_skipped = record.skipped.is_some();
        assert_eq!(record.loss.is_finite(), !is_skipped);
        assert_eq!(record.non_finite.contains_key("loss"), is_skipped);
        if let Some(skipped) = &record.skipped {
            assert!(skipped.samples.contains(&name) && skipped.samples.len() == 4);
            assert!(!skipped.reason.is_empty());
        }
    }
    // In the file, what is no number is null and is said to be what it is.
    let text = fs::read_to_string(dir.path().join(METRICS_FILE)).unwrap();
    for line in text.lines() {
        let line: Value = serde_json::from_str(line).unwrap();
        let named = |key: &str| line["non_finite"].get(key).and_then(Value::as_str);
        for key in ["loss", "ce", "kl", "accuracy", "grad_norm"] {
            assert_eq!(line[key].is_null(), named(key).is_some(), "{key} in {line}");
        }
    }

    // Interrupted in between, the run counts on.
    let parts = tempfile::tempdir().unwrap();
    train(one_step(on(poisoned(), config.clone(), parts.path(), false))).unwrap();
    train(on(poisoned(), config, parts.path(), true)).unwrap();
    assert_eq!(timeless(parts.path()), timeless(dir.path()));
    assert_eq!(checkpoint(parts.path(), 12), checkpoint(dir.path(), 12));
}

#[test]
fn too_many_skipped_steps_end_the_run_and_nothing_that_is_not_finite_is_saved() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = TrainConfig { steps: Some(9), ..config() };
    // Finite gradients, and parameters that are not.
    (config.optim.lr, config.optim.weight_decay) = (Some(1e3), 1e38);
    config.optim.max_skipped = 3;
    config.checkpoint.every = 1;
    config.checkpoint.keep = 1;
    let before = weights(&model(&config).valid());
    let error = train(job(config.clone(), dir.path())).err().unwrap();
    let TrainError::Ended { error: cause, saved: SavedSteps::All { step: 3, .. } } = &error else {
        panic!("{error:?}")
    };
    assert!(
        matches!(&**cause, TrainError::TooManySkipped { in_a_row: 3, step: 2, samples, .. } if samples.len() == 4),
        "{cause:?}"
    );
    let (saved, step) = load_trained(model(&config).valid(), dir.path()).unwrap();
    assert_eq!(step, 3);
    assert!(weights(&saved) == before, "a skipped step changed the model");
    assert_eq!(read_metrics(&dir.path().join(METRICS_FILE)).unwrap().len(), 3);
    // Resumed with more patience, it goes on.
    config.optim.max_skipped = 100;
    let outcome = train(TrainJob { resume: true, ..job(config, dir.path()) }).unwrap();
    assert_eq!((outcome.steps, outcome.totals.skipped_steps), (9, 9));
}

/// Blocks until the flag is set: a share that is gone, a pipe that nobody writes to.
fn hang(until: &AtomicBool) {
    while !until.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_read_that_hangs_does_not_keep_a_run_from_ending() {
    let dir = tempfile::tempdir().unwrap();
    let (whole_dir, run_dir) = (dir.path().join("whole"), dir.path().join("run"));
    run(six(), &whole_dir);
    let [interrupt, release] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
    let (signal, end) = (interrupt.clone(), release.clone());
    let stuck = move || {
        signal.store(true, Ordering::SeqCst);
        hang(&end);
        Ok(())
    };
    let stuck = Arc::new(Hooked { scenes: scenes(12), hook: after(9, stuck) });
    let begin = Instant::now();
    let stopped = TrainJob { interrupt, ..on(stuck, six(), &run_dir, false) };
    let outcome = train(stopped).unwrap();
    release.store(true, Ordering::SeqCst);
    assert!(begin.elapsed() < Duration::from_secs(30));
    assert!(outcome.interrupted && (1..=2).contains(&outcome.steps), "{}", outcome.steps);
    train(on(scenes(12), six(), &run_dir, true)).unwrap();
    assert_eq!(timeless(&run_dir), timeless(&whole_dir));

    // In the computation of features, and in validation.
    for cached in [true, false] {
        let [interrupt, release] = [(); 2].map(|()| Arc::new(AtomicBool::new(false)));
        let (signal, end) = (interrupt.clone(), release.clone());
        let stuck = hooked(move |index, _| {
            if index == 3 {
                signal.store(true, Ordering::SeqCst);
                hang(&end);
            }
            Ok(())
        });
        let mut config = six();
        let run_dir = dir.path().join(format!("cached-{cached}"));
        let begin = Instant::now();
        let ended = match cached {
            true => {
                config.data.features.cache = CacheMode::Memory;
                train(TrainJob { interrupt, ..on(stuck, config, &run_dir, false) })
            }
            false => {
                config.validation.every = 2;
                let valid = Some(stuck);
                train(TrainJob { interrupt, valid, ..job(config, &run_dir) })
            }
        };
        release.store(true, Ordering::SeqCst);
        assert!(begin.elapsed() < Duration::from_secs(30));
        match ended {
            Err(TrainError::FeaturesInterrupted { .. }) if cached => assert!(!run_dir.exists()),
            Ok(outcome) if !cached => {
                assert!(outcome.interrupted && outcome.steps == 2);
                assert!(!run_dir.join(VALIDATION_FILE).exists());
            }
            other => panic!("{:?}", other.map(|outcome| outcome.steps)),
        }
    }
}

#[test]
fn a_run_ends_between_two_micro_batches() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = six();
    (config.batch.size, config.batch.accumulation) = (1, 4);
    // The flag goes up while the second window is read.
    let interrupt = Arc::new(AtomicBool::new(false));
    let signal = interrupt.clone();
    let hook = after(6, move || {
        signal.store(true, Ordering::SeqCst);
        Ok(())
    });
    let source = Arc::new(Hooked { scenes: scenes(12), hook });
    let outcome =
        train(TrainJob { interrupt, ..on(source, config.clone(), dir.path(), false) }).unwrap();
    assert!(outcome.interrupted && outcome.steps < 3, "{}", outcome.steps);
    let reached = read_metrics(&dir.path().join(METRICS_FILE)).map_or(0, |records| records.len());
    assert_eq!(outcome.steps as usize, reached);
    if reached > 0 {
        train(on(scenes(12), config.clone(), dir.path(), true)).unwrap();
        let whole = tempfile::tempdir().unwrap();
        train(on(scenes(12), config, whole.path(), false)).unwrap();
        assert_eq!(timeless(dir.path()), timeless(whole.path()));
    }
}

#[test]
fn an_earlier_run_makes_room_only_for_one_that_works() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    run(config(), &run_dir);
    let mine = run_dir.join("checkpoints/mine.bin");
    fs::write(&mine, "mine").unwrap();
    let (metrics, tensors) = (timeless(&run_dir), checkpoint(&run_dir, 4));
    let over =
        |source, config| train(TrainJob { overwrite: true, ..on(source, config, &run_dir, false) });
    // The first sample cannot be read; a pruner that nobody knows.
    let error = over(hooked(|_, _| Err(unreadable())), six()).err().unwrap();
    assert!(matches!(error, TrainError::Data(_)), "{error:?}");
    let mut bad = six();
    bad.pruning.pruner.name = "divprun".into();
    assert!(over(scenes(12), bad).is_err());
    assert_eq!((timeless(&run_dir), checkpoint(&run_dir, 4)), (metrics, tensors));

    over(scenes(12), six()).unwrap();
    assert_eq!(read_metrics(&run_dir.join(METRICS_FILE)).unwrap().len(), 6);
    assert!(!run_dir.join("checkpoints/step-00000004").exists());
    assert_eq!(fs::read_to_string(mine).unwrap(), "mine");
    // A fresh run that fails at its first sample leaves no directory that would be in the way.
    let fresh = dir.path().join("fresh");
    assert!(train(on(hooked(|_, _| Err(unreadable())), six(), &fresh, false)).is_err());
    assert!(!fresh.exists());
}
