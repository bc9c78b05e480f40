//! A run with a part of every kind, through the library: what it records, trains, resumes, loads and refuses.

use std::path::Path;

use burn_ndarray::NdArray;
use dualspeed::burn::backend::Autodiff;
use dualspeed::burn::module::{Module, ModuleVisitor, Param};
use dualspeed::burn::tensor::backend;
use dualspeed::data::{Rgb, RgbImage, source_registry};
use dualspeed::extensions::{doors, parts, sources};
use dualspeed::model::{GenerateOptions, Projector, Tower};
use dualspeed::pipeline::{GenerationRequest, GenerationSettings, Pipeline};
use dualspeed::prelude::*;
use dualspeed::run_dir;
use dualspeed::train::{METRICS_FILE, TrainOutcome, read_metrics};
use outside::Outside;
use outside::plateau::Plateau;

type Inner = NdArray<f32>;
type Train = Autodiff<Inner>;

fn config(overrides: &[&str]) -> TrainConfig {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("train.toml");
    let overrides: Vec<String> = overrides.iter().map(|text| text.to_string()).collect();
    TrainConfig::load(&path, &overrides).unwrap()
}

fn run(config: TrainConfig, dir: &Path, resume: bool) -> anyhow::Result<TrainOutcome<Train>> {
    let device = Default::default();
    let model = run_dir::initial_model::<Train>(&config, &parts::<Train, Outside>(), &device)?;
    let source =
        config.data.train.open(&config.model, config.seed, config.compat, &sources::<Outside>())?;
    let doors = doors::<Train, Outside>(&device);
    Ok(train(TrainJob { doors, resume, ..TrainJob::new(config, model, source, dir) })?)
}

fn records(dir: &Path) -> Vec<StepRecord> {
    let mut records = read_metrics(&dir.join(METRICS_FILE)).unwrap();
    records.iter_mut().for_each(|record| record.time = Default::default());
    records
}

fn weights(model: &Llava<Inner>) -> Vec<f32> {
    struct Collect(Vec<f32>);
    impl<B: backend::Backend> ModuleVisitor<B> for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.extend(param.val().into_data().iter::<f32>());
        }
    }
    let mut collect = Collect(Vec::new());
    model.visit(&mut collect);
    collect.0
}

/// Every weight of the tower and of the projector.
fn own_weights(model: &Llava<Inner>) -> [Vec<f32>; 6] {
    let (Tower::Custom(tower), Projector::Custom(projector)) =
        (&*model.vision_tower, &*model.mm_projector)
    else {
        panic!("tower and projector are those of this crate")
    };
    let kernel = |name| tower.params.kernel(name).unwrap().into_data().to_vec().unwrap();
    let bias = |name| tower.params.vector(name).unwrap().into_data().to_vec().unwrap();
    [
        kernel("patch_embedding.weight"),
        bias("patch_embedding.bias"),
        kernel("neighbours.weight"),
        bias("neighbours.bias"),
        projector.params.matrix("weight").unwrap().into_data().to_vec().unwrap(),
        projector.params.vector("bias").unwrap().into_data().to_vec().unwrap(),
    ]
}

#[test]
fn records_show_every_part() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = dir.path().join("run");
    run(config(&[]), &run_dir, false).unwrap();
    let records = records(&run_dir);
    assert_eq!(records.len(), 8);

    // The modes are what the schedule makes of the recorded losses, two steps later.
    let mut schedule = Plateau::new(&config(&[]).schedule()).unwrap();
    for (index, record) in records.iter().enumerate() {
        if let Some(past) = index.checked_sub(2).map(|past| &records[past]) {
            let (step, mode, loss) = (past.step, past.mode, past.loss);
            schedule.observe(&PastStep { step, mode, loss });
        }
        assert_eq!(schedule.mode(record.step, 8), record.mode, "step {index}");
    }
    let slow = records.iter().filter(|record| record.mode == Mode::Slow).count();
    assert!((1..8).contains(&slow), "{slow} slow steps");

    for record in &records {
        // 64 features of each of 4 images are 16 tokens after the projector.
        assert_eq!(record.visual_tokens, 4 * 16);
        let saved = record.metrics["tokens_saved"];
        let gap = record.parts.get("view_gap").copied();
        match record.mode {
            Mode::Fast => {
                assert_eq!(record.visual_tokens_kept, 4 * 4);
                assert!(saved > 0.0 && gap.is_none(), "{record:?}");
            }
            Mode::Slow => {
                assert_eq!((record.visual_tokens_kept, saved), (4 * 16, 0.0));
                assert!(gap.is_some_and(|gap| gap > 0.0 && gap < 2.0), "{record:?}");
            }
        }
        let loss = record.ce + record.kl + 0.5 * gap.unwrap_or(0.0);
        assert!((record.loss - loss).abs() < 1e-5, "{record:?}");
    }
}

#[test]
fn tower_and_projector_are_trained_and_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, device) = (dir.path().join("run"), Default::default());
    let outcome = run(config(&[]), &run_dir, false).unwrap();
    let parts = parts::<Train, Outside>();
    let initial = run_dir::initial_model::<Inner>(&config(&[]), &parts, &device).unwrap();
    for (before, after) in own_weights(&initial).iter().zip(own_weights(&outcome.model)) {
        assert!(before.iter().zip(&after).any(|(before, after)| before != after));
    }

    let read = run_dir::read_config(&run_dir).unwrap();
    assert_eq!(read, config(&[]).effective());
    let loaded = run_dir::load_model::<Inner>(&run_dir, &parts, &device).unwrap();
    assert_eq!(weights(&loaded), weights(&outcome.model));
}

#[test]
fn a_frozen_tower_stays_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&["train_vision_tower=false", "steps=2"]);
    let outcome = run(config.clone(), &dir.path().join("run"), false).unwrap();
    let parts = parts::<Train, Outside>();
    let initial = run_dir::initial_model::<Inner>(&config, &parts, &Default::default()).unwrap();
    let (before, after) = (own_weights(&initial), own_weights(&outcome.model));
    assert_eq!(before[..4], after[..4]);
    assert_ne!(before[4], after[4]);
}

#[test]
fn a_run_resumed_after_step_4_is_the_uninterrupted_run() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, resumed) = (dir.path().join("whole"), dir.path().join("resumed"));
    let uninterrupted = run(config(&[]), &whole, false).unwrap();
    // What a crash in step 6 leaves.
    let checkpoint = "checkpoints/step-00000004";
    std::fs::create_dir_all(resumed.join(checkpoint)).unwrap();
    for entry in std::fs::read_dir(whole.join(checkpoint)).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), resumed.join(checkpoint).join(entry.file_name())).unwrap();
    }
    std::fs::copy(whole.join("config.toml"), resumed.join("config.toml")).unwrap();
    let log = std::fs::read_to_string(whole.join(METRICS_FILE)).unwrap();
    let log: String = log.split_inclusive('\n').take(6).collect();
    std::fs::write(resumed.join(METRICS_FILE), log).unwrap();

    let outcome = run(config(&[]), &resumed, true).unwrap();
    assert_eq!(outcome.steps, 8);
    assert_eq!(records(&resumed), records(&whole));
    assert_eq!(weights(&outcome.model), weights(&uninterrupted.model));
}

#[test]
fn a_run_answers_in_the_words_of_its_data() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, device) = (dir.path().join("run"), Default::default());
    // Long enough to tell an answer from the end of one.
    run(config(&["steps=40"]), &run_dir, false).unwrap();
    let image = dir.path().join("red.png");
    RgbImage::from_pixel(32, 32, Rgb([255, 0, 0])).save(&image).unwrap();
    let request =
        GenerationRequest { prompt: "how many are red".to_owned(), images: vec![image.clone()] };
    let settings = GenerationSettings {
        view: View::Full,
        pruner: None,
        options: GenerateOptions { max_new_tokens: 3, ..GenerateOptions::default() },
    };
    let (parts, sources) = (parts::<Train, Outside>(), sources::<Outside>());
    let pipeline = Pipeline::<Inner>::from_run(&run_dir, &parts, &sources, &device).unwrap();
    let output = pipeline.generate(&request, &settings, &device, &mut |_| {}).unwrap();
    let words = ["zero", "one", "two", "three", "four", "how", "many", "are", "red"];
    assert!(!output.text.is_empty());
    assert!(output.text.split(' ').all(|word| words.contains(&word)), "{}", output.text);

    let unknown = Pipeline::<Inner>::from_run(&run_dir, &parts, &source_registry(), &device);
    let message = format!("{:#}", unknown.unwrap_err());
    assert!(message.contains("unknown data source `squares`"), "{message}");
}

#[test]
fn a_run_is_not_loaded_without_its_parts() {
    let dir = tempfile::tempdir().unwrap();
    let (run_dir, device) = (dir.path().join("run"), Default::default());
    run(config(&["steps=1"]), &run_dir, false).unwrap();
    let refusal = |parts: &Parts| {
        format!("{:#}", run_dir::load_model::<Inner>(&run_dir, parts, &device).unwrap_err())
    };
    let message = refusal(&Parts::default());
    assert!(message.contains("unknown vision tower `patch_tower`"), "{message}");
    let towers = parts::<Train, Outside>().towers;
    let message = refusal(&Parts { towers, ..Parts::default() });
    assert!(message.contains("unknown projector `pixel_shuffle`"), "{message}");
}

#[test]
fn misspelt_names_are_refused_with_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    for (key, value, kind, nearest) in [
        ("pruning.pruner.name", "center", "pruner", "centre"),
        ("mode.schedule", "platau", "mode schedule", "plateau"),
        ("objective.name", "view_gab", "objective", "view_gap"),
        ("metrics", "[\"token_saved\"]", "metric", "tokens_saved"),
        ("model.vision.kind", "patch_towr", "vision tower", "patch_tower"),
        ("model.mm_projector_type.kind", "pixel_shufle", "projector", "pixel_shuffle"),
        ("data.train.source", "square", "data source", "squares"),
    ] {
        let refused = run(config(&[&format!("{key}={value}")]), &dir.path().join(kind), false);
        let message = format!("{:#}", refused.err().expect("it is refused"));
        let name = value.trim_matches(['[', ']', '"']);
        assert!(message.contains(&format!("{kind} `{name}`")), "{message}");
        assert!(message.contains(&format!("did you mean `{nearest}`?")), "{message}");
    }
}
