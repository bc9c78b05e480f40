//! Samples that cannot be used: found before the first step, or skipped, the same in every batch shape.

use std::path::Path;
use std::sync::Arc;

use dualspeed_core::rng::SplitMix;
use dualspeed_data::{
    DataError, Example, ExampleSource, HostImage, IGNORE_INDEX, IMAGE_TOKEN_INDEX, Modality,
    OnError, RecordProblem, SequenceLimits, TextTokenizer, ViewLength,
};
use dualspeed_model::layout::{ImageSlots, LayoutOptions, lay_out};
use dualspeed_model::{Registry, TextBatch};
use dualspeed_train::config::CacheMode;
use dualspeed_train::{
    METRICS_FILE, TrainConfig, TrainError, TrainJob, TrainOutcome, read_metrics, sequence_limits,
    train,
};

use crate::support::{Inner, Train, config, largest_difference, model, scenes, timeless, weights};

/// Twelve scenes, of which some cannot be made, one has a token that no embedding has, and one is too long.
struct Faulty {
    scenes: Arc<dyn ExampleSource>,
    broken: &'static [usize],
    foreign: Option<usize>,
    long: Option<usize>,
}

impl Faulty {
    fn new(broken: &'static [usize]) -> Self {
        Self { scenes: scenes(12), broken, foreign: None, long: None }
    }
}

impl ExampleSource for Faulty {
    fn len(&self) -> usize {
        self.scenes.len()
    }
    fn get(&self, index: usize) -> Result<Example, DataError> {
        if self.broken.contains(&index) {
            return Err(self.locate(index, RecordProblem::Other("torn".into())));
        }
        let mut example = self.scenes.get(index)?;
        if self.foreign == Some(index) {
            let last = example.input_ids.len() - 1;
            (example.input_ids[last], example.labels[last]) = (9999, 9999);
        }
        if self.long == Some(index) {
            let pad = vec![5; 60];
            let at = example.input_ids.iter().position(|id| *id == IMAGE_TOKEN_INDEX).unwrap() + 1;
            example.input_ids.splice(at..at, pad.iter().copied());
            example.labels.splice(at..at, pad.iter().map(|_| IGNORE_INDEX));
            // Questions lie elsewhere now, and nothing here asks them.
            example.questions.clear();
        }
        Ok(example)
    }
    fn id(&self, index: usize) -> String {
        self.scenes.get(index).unwrap().id
    }
    fn modality(&self, index: usize) -> Modality {
        self.scenes.modality(index)
    }
    fn length_hint(&self, index: usize) -> usize {
        self.scenes.length_hint(index)
    }
    fn fingerprint(&self) -> String {
        format!("faulty {}", self.scenes.fingerprint())
    }
    fn tokenizer(&self) -> Option<Arc<TextTokenizer>> {
        // Not told: every token id is looked at.
        None
    }
}

fn skipping(size: usize, accumulation: usize) -> TrainConfig {
    let mut config = config();
    config.data.on_error = OnError::Skip;
    (config.batch.size, config.batch.accumulation) = (size, accumulation);
    config.optim.eps = 1e-3;
    config
}

fn job(config: TrainConfig, source: Faulty, dir: &Path) -> TrainJob<Train> {
    let model = model(&config);
    TrainJob::new(config, model, Arc::new(source), dir)
}

fn run(config: TrainConfig, source: Faulty, dir: &Path) -> TrainOutcome<Train> {
    train(job(config, source, dir)).unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_skipped_sample_is_counted_and_the_same_in_every_batch_shape() {
    let dir = tempfile::tempdir().unwrap();
    let mut results = Vec::new();
    for (size, accumulation) in [(6, 1), (3, 2), (2, 3), (1, 6)] {
        let name = format!("{size}x{accumulation}");
        let config = skipping(size, accumulation);
        let outcome = run(config, Faulty::new(&[3, 7]), &dir.path().join(&name));
        let records = read_metrics(&dir.path().join(name).join(METRICS_FILE)).unwrap();
        let skipped: Vec<_> = records.iter().map(|r| r.skipped_samples.clone()).collect();
        let samples: Vec<_> = records.iter().map(|r| r.samples).collect();
        // Two epochs of two steps: each bad sample comes up twice.
        assert_eq!(outcome.totals.skipped_samples, 4);
        assert_eq!(skipped.iter().flatten().count(), 4);
        for (skipped, samples) in skipped.iter().zip(&samples) {
            assert_eq!(skipped.len() + samples, 6);
        }
        assert!(skipped.iter().flatten().all(|id| id.ends_with("-3") || id.ends_with("-7")));
        results.push((weights(&outcome.model), skipped));
    }
    let (whole, ids) = &results[0];
    for (split, other) in &results[1..] {
        assert_eq!(ids, other);
        let difference = largest_difference(whole, split);
        assert!(difference < 2e-6, "{difference}");
    }
    // Without the bad samples it is another run: the comparison can fail.
    let clean = run(skipping(6, 1), Faulty::new(&[]), &dir.path().join("clean"));
    assert!(largest_difference(whole, &weights(&clean.model)) > 1e-4);
}

#[test]
fn a_step_of_which_nothing_is_left_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = skipping(1, 1);
    config.steps = Some(12);
    let outcome = run(config, Faulty::new(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), dir.path());
    let records = read_metrics(&dir.path().join(METRICS_FILE)).unwrap();
    assert_eq!(records.len(), 12);
    let used: Vec<_> = records.iter().filter(|record| record.samples > 0).collect();
    assert_eq!((used.len(), outcome.totals.skipped_samples), (1, 11));
    let empty = records.iter().find(|record| record.samples == 0).unwrap();
    assert_eq!((empty.loss, empty.grad_norm, empty.supervised_tokens), (0.0, 0.0, 0));
}

#[test]
fn a_resumed_run_skips_what_the_uninterrupted_one_does() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
    let all = run(skipping(2, 2), Faulty::new(&[3, 7]), &whole);
    let mut early = skipping(2, 2);
    early.checkpoint.every = 2;
    run(early.clone(), Faulty::new(&[3, 7]), &parts);
    std::fs::remove_dir_all(parts.join("checkpoints/step-00000004")).unwrap();
    let mut second = job(early, Faulty::new(&[3, 7]), &parts);
    second.resume = true;
    let second = train(second).unwrap();
    assert_eq!(weights(&all.model), weights(&second.model));
    assert_eq!(timeless(&whole), timeless(&parts));
    assert_eq!(all.totals.skipped_samples, second.totals.skipped_samples);
}

#[test]
fn cached_features_skip_what_pixels_skip() {
    let dir = tempfile::tempdir().unwrap();
    let pixels = run(skipping(4, 1), Faulty::new(&[3, 7]), &dir.path().join("pixels"));
    let mut config = skipping(4, 1);
    config.data.features.cache = CacheMode::Memory;
    let cached = run(config, Faulty::new(&[3, 7]), &dir.path().join("cached"));
    assert_eq!(pixels.totals.skipped_samples, cached.totals.skipped_samples);
    let difference = largest_difference(&weights(&pixels.model), &weights(&cached.model));
    assert!(difference < 1e-5, "{difference}");
}

#[test]
fn too_many_in_a_row_end_the_run() {
    let dir = tempfile::tempdir().unwrap();
    for (size, accumulation) in [(4, 1), (2, 2), (1, 4)] {
        let mut config = skipping(size, accumulation);
        config.data.max_skipped = 12;
        config.steps = Some(20);
        let all = Faulty::new(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]);
        let name = format!("{size}x{accumulation}");
        let error = train(job(config, all, &dir.path().join(&name))).err().unwrap();
        let message = error.to_string();
        assert!(message.contains("12 samples in a row"), "{message}");
        assert!(message.contains("torn") && message.contains("data.max_skipped"), "{message}");
        let records = read_metrics(&dir.path().join(name).join(METRICS_FILE)).unwrap();
        assert_eq!(records.len(), 2);
    }
}

#[test]
fn faults_are_found_before_the_first_step() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config();
    // An image of 16 tokens, 4 in fast steps behind an isolator of 2: the long one fits pruned, not in full.
    config.model.max_length = Some(80);
    let source = |long, foreign| Faulty { long, foreign, ..Faulty::new(&[2]) };
    let run = dir.path().join("run");
    let error = train(job(config.clone(), source(Some(5), Some(9)), &run)).err().unwrap();
    let TrainError::Data(DataError::Several(bad)) = &error else { panic!("{error}") };
    assert_eq!((bad.bad, bad.of), (3, 12), "{error}");
    let kinds: Vec<_> = bad.listed.iter().map(DataError::kind).collect();
    assert_eq!(
        kinds,
        ["other", "answers cut off by max_length", "token id outside of the embedding"]
    );
    let message = error.to_string();
    assert!(message.contains("in full view") && message.contains("max_length 80"), "{message}");
    assert!(message.contains("9999"), "{message}");
    assert!(!run.exists(), "nothing is written");

    // Where the full view is never trained, it is no fault.
    config.mode.schedule = Some("always_fast".into());
    let source = Faulty { long: Some(5), ..Faulty::new(&[]) };
    train(job(config, source, &run)).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn lengths_are_those_of_the_models_layout() {
    let mut rng = SplitMix::new(&[23]);
    let blank = Arc::new(HostImage { key: 0, size: 1, pixels: Vec::new() });
    for round in 0..400 {
        let length = 1 + rng.below(24);
        let ids: Vec<i64> = (0..length)
            .map(|_| if rng.uniform() < 0.15 { IMAGE_TOKEN_INDEX } else { rng.below(9) as i64 })
            .collect();
        let labels: Vec<i64> = ids
            .iter()
            .map(|id| if *id >= 0 && rng.uniform() < 0.3 { *id } else { IGNORE_INDEX })
            .collect();
        let count = ids.iter().filter(|id| **id == IMAGE_TOKEN_INDEX).count();
        let (n, keep, isolator) = (1 + rng.below(6), 1 + rng.below(6), rng.below(3));
        let max_length = (rng.uniform() < 0.8).then(|| 1 + rng.below(40));
        let limits = SequenceLimits {
            vocab_size: Some(9),
            max_length,
            tile_tokens: n,
            tiles: false,
            views: vec![ViewLength {
                name: "pruned".into(),
                isolator_length: isolator,
                keep: Some(keep),
                trained: true,
            }],
        };
        let example = Example {
            input_ids: ids.clone(),
            labels: labels.clone(),
            images: vec![blank.clone(); count],
            ..Example::default()
        };
        let slots = |image| ImageSlots::sequential(image * n, keep.min(n), n);
        let images: Vec<_> = (0..count).map(slots).collect();
        let lay = |max_length| {
            let options = LayoutOptions {
                vocab_size: 9,
                isolator_length: isolator,
                max_length,
                ..LayoutOptions::default()
            };
            let batch = TextBatch {
                input_ids: std::slice::from_ref(&ids),
                labels: std::slice::from_ref(&labels),
            };
            let sequence = lay_out(batch, &images, options).unwrap().remove(0);
            let supervised = sequence.slots.iter().skip(1);
            let supervised = supervised.filter(|slot| slot.label != IGNORE_INDEX).count();
            (sequence.slots.len(), supervised, sequence.images.len())
        };
        let tokens = limits.measure(&example)[0];
        let (whole, cut) = (lay(None), lay(max_length));
        assert_eq!((tokens.length, tokens.supervised, count), whole, "round {round}");
        let kept = (tokens.kept, tokens.supervised_kept, count - tokens.images_lost);
        assert_eq!(kept, cut, "round {round}: {ids:?} {max_length:?}");
        let fits = limits.check(&example).is_ok();
        assert_eq!(fits, cut.1 > 0, "round {round}");
    }
}

#[test]
fn a_pruner_inside_the_decoder_sees_all_visual_tokens() {
    let mut config = config();
    let limits = |config: &TrainConfig| {
        let pruner = Registry::<Inner>::builtin().build(&config.pruner()).unwrap();
        sequence_limits(config, &*pruner)
    };
    let pruned = limits(&config);
    assert_eq!((pruned.tile_tokens, pruned.views[1].keep), (16, Some(4)));
    assert_eq!(pruned.views[1].isolator_length, 2);
    config.pruning.pruner.name = "pyramiddrop".into();
    assert_eq!(limits(&config).views[1].keep, None);
    config.mode.schedule = Some("always_slow".into());
    config.distill.lambda = 0.0;
    let trained: Vec<_> = limits(&config).views.iter().map(|view| view.trained).collect();
    assert_eq!(trained, [true, false]);
}
