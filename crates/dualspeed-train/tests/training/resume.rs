//! What a run that was ended at any place goes on with, and what it refuses to go on with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dualspeed_data::{
    DataError, Example, ExampleSource, Grouping, MemorySource, Modality, RecordKey,
};
use dualspeed_train::{
    METRICS_FILE, RESUMES_FILE, TrainConfig, TrainError, TrainJob, TrainOutcome, VALIDATION_FILE,
    load_trained, train,
};

use crate::support::{Train, config, job, model, records, run, scenes, timeless, weights};

/// Eight steps, a checkpoint and a validation every second.
fn long_config() -> TrainConfig {
    let mut config = TrainConfig { steps: Some(8), ..config() };
    (config.checkpoint.every, config.checkpoint.keep) = (2, 9);
    (config.validation.every, config.validation.samples) = (2, Some(4));
    config
}

fn validated(
    config: TrainConfig,
    dir: &Path,
    resume: bool,
) -> Result<TrainOutcome<Train>, TrainError> {
    let mut job = job(config, dir);
    (job.valid, job.resume) = (Some(scenes(6)), resume);
    train(job)
}

fn text(dir: &Path, name: &str) -> String {
    std::fs::read_to_string(dir.join(name)).unwrap()
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        match entry.path().is_dir() {
            true => copy(&entry.path(), &target),
            false => {
                std::fs::copy(entry.path(), target).unwrap();
            }
        }
    }
}

fn checkpoint(dir: &Path, step: u64) -> PathBuf {
    dir.join(format!("checkpoints/step-{step:08}"))
}

/// What a run leaves that is killed at some place: the checkpoint of `step` is the newest, and the logs are as long as given.
fn killed(whole: &Path, dir: &Path, step: u64, metrics: &str, validations: &str) {
    let _ = std::fs::remove_dir_all(dir);
    copy(whole, dir);
    for later in (step + 2..=8).step_by(2) {
        std::fs::remove_dir_all(checkpoint(dir, later)).unwrap();
    }
    std::fs::write(dir.join(METRICS_FILE), metrics).unwrap();
    std::fs::write(dir.join(VALIDATION_FILE), validations).unwrap();
}

#[test]
fn after_a_kill_at_any_place_both_logs_have_every_step_once() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, part) = (dir.path().join("whole"), dir.path().join("part"));
    let trained = validated(long_config(), &whole, false).unwrap();
    let (metrics, validations) = (text(&whole, METRICS_FILE), text(&whole, VALIDATION_FILE));
    let first = |text: &str, lines: usize| -> String {
        text.lines().take(lines).map(|line| format!("{line}\n")).collect()
    };
    let torn = |text: &str, lines: usize| format!("{}{{\"step\":", first(text, lines));
    let cases = [
        // In a step, in the line of a step.
        (4, first(&metrics, 5), first(&validations, 2)),
        (4, torn(&metrics, 5), first(&validations, 2)),
        // Between a checkpoint and its validation, and in the line of that.
        (4, first(&metrics, 4), first(&validations, 1)),
        (4, first(&metrics, 4), torn(&validations, 1)),
        // While the next checkpoint was written; after a fallback over two checkpoints.
        (4, first(&metrics, 6), first(&validations, 2)),
        (2, metrics.clone(), validations.clone()),
        // At the very end.
        (8, metrics.clone(), first(&validations, 3)),
    ];
    for (step, lines, validated_lines) in cases {
        killed(&whole, &part, step, &lines, &validated_lines);
        let resumed = validated(long_config(), &part, true).unwrap();
        assert_eq!(timeless(&part), timeless(&whole), "{step}");
        assert_eq!(text(&part, VALIDATION_FILE), validations, "{step}");
        assert_eq!(weights(&resumed.model), weights(&trained.model), "{step}");
        // Once more: there is nothing left to do, and nothing is done.
        let before = text(&part, METRICS_FILE);
        assert_eq!(validated(long_config(), &part, true).unwrap().steps, 8);
        assert_eq!(text(&part, METRICS_FILE), before);
        assert_eq!(text(&part, VALIDATION_FILE), validations);
    }
}

#[test]
fn the_best_checkpoints_stay_beside_the_last() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = long_config();
    (config.checkpoint.keep, config.checkpoint.keep_best) = (1, 1);
    validated(config, dir.path(), false).unwrap();
    let mut validations: Vec<(f64, u64)> = text(dir.path(), VALIDATION_FILE)
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|record| (record["ce"].as_f64().unwrap(), record["step"].as_u64().unwrap()))
        // The last one's is made after the last decision.
        .filter(|(_, step)| *step < 8)
        .collect();
    validations.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut kept = vec![validations[0].1, 8];
    kept.sort_unstable();
    for step in [2, 4, 6, 8] {
        assert_eq!(
            checkpoint(dir.path(), step).exists(),
            kept.contains(&step),
            "{step} of {kept:?}"
        );
    }
}

#[test]
fn a_flipped_bit_costs_the_steps_since_the_checkpoint_before() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, part) = (dir.path().join("whole"), dir.path().join("part"));
    let trained = run(long_config(), &whole);
    copy(&whole, &part);
    std::fs::remove_dir_all(checkpoint(&part, 8)).unwrap();
    let tensors = checkpoint(&part, 6).join("trainable.safetensors");
    let mut bytes = std::fs::read(&tensors).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&tensors, bytes).unwrap();

    // For inference too, which leaves all as it is.
    let (_, step) = load_trained(model(&config()), &part).unwrap();
    let (_, whole_step) = load_trained(model(&config()), &whole).unwrap();
    // The middle is in the moments or in the weights; only the latter are read here.
    assert!(whole_step == 8 && (step == 4 || step == 6), "{step}");
    assert!(tensors.is_file());

    let mut again = job(long_config(), &part);
    again.resume = true;
    let resumed = train(again).unwrap();
    assert_eq!(weights(&resumed.model), weights(&trained.model));
    assert_eq!(timeless(&part), timeless(&whole));
    assert!(part.join("checkpoints/damaged-step-00000006").is_dir());
    assert!(checkpoint(&part, 6).is_dir());
    let resumes = text(&part, RESUMES_FILE);
    assert!(resumes.contains("\"step\":4") && resumes.contains("step-00000006"), "{resumes}");
}

#[test]
fn a_run_directory_has_one_writer() {
    /// Asks for a second run in the same directory in the middle of the first.
    struct Second(Arc<dyn ExampleSource>, PathBuf);
    impl ExampleSource for Second {
        fn len(&self) -> usize {
            self.0.len()
        }
        fn get(&self, index: usize) -> Result<Example, DataError> {
            for (resume, overwrite) in [(true, false), (false, true), (false, false)] {
                let second = TrainJob { resume, overwrite, ..job(config(), &self.1) };
                let error = train(second).err().unwrap();
                assert!(matches!(error, TrainError::RunLocked { .. }), "{error}");
                let message = error.to_string();
                assert!(message.contains(&format!("process {} on ", std::process::id())));
            }
            self.0.get(index)
        }
        fn modality(&self, index: usize) -> Modality {
            self.0.modality(index)
        }
        fn length_hint(&self, index: usize) -> usize {
            self.0.length_hint(index)
        }
        fn fingerprint(&self) -> String {
            self.0.fingerprint()
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let config = TrainConfig { steps: Some(1), ..config() };
    let source = Arc::new(Second(scenes(4), dir.path().to_owned()));
    let outcome = train(TrainJob::new(config.clone(), model(&config), source, dir.path())).unwrap();
    assert_eq!(outcome.steps, 1);
    assert!(!dir.path().join("run.lock").exists());
}

#[test]
fn a_run_may_become_longer_and_says_why_it_may_not_change() {
    let dir = tempfile::tempdir().unwrap();
    run(config(), dir.path());
    let resumed = |change: fn(&mut TrainConfig)| {
        let mut config = config();
        change(&mut config);
        let mut job = job(config, dir.path());
        job.resume = true;
        train(job)
    };
    let refused: [(fn(&mut TrainConfig), &str); 7] = [
        (|config| config.steps = Some(3), "steps is 3, was 4: a run may only become longer"),
        (|config| config.seed = 4, "seed is 4, was 3: the order of samples"),
        (|config| config.batch.size = 2, "batch.size is 2, was 4: the order of samples"),
        (|config| config.pruning.ratio = 0.5, "pruning.ratio is 0.5, was 0.75: fast steps"),
        (|config| config.distill.lambda = 0.5, "distill.lambda is 0.5, was 1.0: another loss"),
        (|config| config.mode.every = 3, "mode.every is 3, was 2: which steps are slow"),
        (|config| config.model.max_length = Some(8), "model.max_length is 8, was null: samples"),
    ];
    for (change, words) in refused {
        let Err(TrainError::ForeignCheckpoint { differing, .. }) = resumed(change) else {
            panic!("accepted: {words}")
        };
        assert_eq!(differing.len(), 1, "{differing:?}");
        assert!(differing[0].starts_with(words), "{differing:?}");
    }
    // Longer; the same samples in smaller parts; more workers: one step after the other.
    assert_eq!(resumed(|config| config.steps = Some(6)).unwrap().steps, 6);
    let written = text(dir.path(), "config.toml");
    assert!(written.contains("steps = 6"), "{written}");
    let more: fn(&mut TrainConfig) = |config| {
        config.steps = Some(7);
        (config.batch.size, config.batch.accumulation) = (2, 2);
        config.data.workers = Some(3);
    };
    assert_eq!(resumed(more).unwrap().steps, 7);
    let steps: Vec<u64> = records(dir.path()).iter().map(|record| record.step).collect();
    assert_eq!(steps, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(text(dir.path(), RESUMES_FILE).lines().count(), 2);
}

/// Scenes as records: which, in which order, with which content.
struct Listed {
    scenes: Arc<dyn ExampleSource>,
    listed: Vec<usize>,
    corrected: Option<usize>,
}

impl Listed {
    fn of(listed: impl IntoIterator<Item = usize>) -> Self {
        Self { scenes: scenes(13), listed: listed.into_iter().collect(), corrected: None }
    }
}

impl ExampleSource for Listed {
    fn len(&self) -> usize {
        self.listed.len()
    }
    fn get(&self, index: usize) -> Result<Example, DataError> {
        self.scenes.get(self.listed[index])
    }
    fn modality(&self, index: usize) -> Modality {
        self.scenes.modality(self.listed[index])
    }
    fn length_hint(&self, index: usize) -> usize {
        self.scenes.length_hint(self.listed[index])
    }
    fn fingerprint(&self) -> String {
        format!("{:?} {:?}", self.listed, self.corrected)
    }
    fn record(&self, index: usize) -> Option<RecordKey> {
        let scene = self.listed[index];
        let content = if self.corrected == Some(scene) { "corrected" } else { "as it was" };
        Some(RecordKey::new(index, &format!("scene {scene}"), [content]))
    }
}

#[test]
fn listed_removals_and_corrections_go_on_in_the_same_order() {
    let dir = tempfile::tempdir().unwrap();
    for grouping in [Grouping::Shuffled, Grouping::ModalityAndLength] {
        // Two epochs of three steps.
        let mut config = TrainConfig { steps: Some(6), ..config() };
        (config.checkpoint.every, config.data.grouping) = (2, grouping);
        let run = |source: Listed, name: &str, revised: &[&str], resume: bool| {
            let mut config = config.clone();
            config.data.revised = revised.iter().map(|id| id.to_string()).collect();
            let job = TrainJob::new(
                config.clone(),
                model(&config),
                Arc::new(source),
                dir.path().join(name),
            );
            train(TrainJob { resume, overwrite: !resume, ..job })
        };
        let interrupted = |name: &str| {
            let to = dir.path().join(name);
            let _ = std::fs::remove_dir_all(&to);
            copy(&dir.path().join("whole"), &to);
            for step in [4, 6] {
                let _ = std::fs::remove_dir_all(checkpoint(&to, step));
            }
        };
        let mut keep = config.clone();
        keep.checkpoint.keep = 9;
        let whole = {
            let source = Arc::new(Listed::of(0..12));
            let job = TrainJob::new(keep.clone(), model(&keep), source, dir.path().join("whole"));
            train(TrainJob { overwrite: true, ..job }).unwrap()
        };

        // The same records, turned round: the same run.
        interrupted("turned");
        let turned = run(Listed::of((0..12).rev()), "turned", &[], true).unwrap();
        assert_eq!(weights(&turned.model), weights(&whole.model));
        assert_eq!(timeless(&dir.path().join("turned")), timeless(&dir.path().join("whole")));

        interrupted("removed");
        let without = || Listed::of((0..12).filter(|scene| *scene != 5));
        let refused = run(without(), "removed", &[], true).err().unwrap().to_string();
        for words in ["1 record (scene 5) removed", "data.revised", "\"scene 5\""] {
            assert!(refused.contains(words), "{refused}");
        }
        run(without(), "removed", &["scene 5"], true).unwrap();
        let samples = |name: &str| -> Vec<usize> {
            records(&dir.path().join(name)).iter().map(|record| record.samples).collect()
        };
        // Steps 0 and 1 were done. The removed record is missing once in the second epoch, and at most once in what was left of
        // the first; nothing else moves.
        let missing = 24 - samples("removed").iter().sum::<usize>();
        assert!((1..=2).contains(&missing), "{:?}", samples("removed"));
        assert!(samples("removed").iter().all(|count| (3..=4).contains(count)));

        // A record that the run itself has left out, and said so, needs no other word.
        interrupted("skipped");
        let log = dir.path().join("skipped").join(METRICS_FILE);
        let said = std::fs::read_to_string(&log).unwrap();
        let said =
            said.replacen("{\"step\":0,", "{\"step\":0,\"skipped_samples\":[\"scene 5\"],", 1);
        assert!(said.contains("skipped_samples"), "{said}");
        std::fs::write(&log, said).unwrap();
        run(without(), "skipped", &[], true).unwrap();

        interrupted("corrected");
        let corrected = || Listed { corrected: Some(3), ..Listed::of(0..12) };
        let refused = run(corrected(), "corrected", &["scene 5"], true).err().unwrap().to_string();
        assert!(refused.contains("1 record (scene 3) corrected"), "{refused}");
        let outcome = run(corrected(), "corrected", &["scene 3"], true).unwrap();
        // The scene itself is what it was, so the run is too.
        assert_eq!(weights(&outcome.model), weights(&whole.model));

        interrupted("added");
        let refused =
            run(Listed::of(0..13), "added", &["scene 12"], true).err().unwrap().to_string();
        assert!(
            refused.contains("1 record (scene 12) that the run did not begin with"),
            "{refused}"
        );
    }
}

/// A data set that does not tell its records is compared as a whole.
#[test]
fn a_data_set_without_records_is_the_same_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let source = |count: usize| {
        let examples = (0..count).map(|index| scenes(12).get(index).unwrap()).collect();
        Arc::new(MemorySource::new(examples, format!("{count} scenes")))
    };
    let job = |count: usize, resume: bool| {
        let job = TrainJob::new(config(), model(&config()), source(count), dir.path());
        train(TrainJob { resume, ..job })
    };
    job(12, false).unwrap();
    job(12, true).unwrap();
    let refused = job(11, true).err().unwrap().to_string();
    assert!(refused.contains("data.train is 11 scenes, was 12 scenes"), "{refused}");
}
