//! One training on several backends: the same losses, the same weights, the same answers.
//!
//! Five fast and two slow steps with pruning, isolator, adapters and self-distillation on batches
//! that mix pictures with plain text; a crash in the middle and a resume; greedy answers in both
//! views. On ndarray and flex, and on wgpu where it is compiled in; a software driver is enough:
//! `WGPU_BACKEND=vulkan cargo test -p dualspeed-train --test backends --features wgpu`

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use burn::backend::Autodiff;
use dualspeed_data::{
    ExampleSource, IGNORE_INDEX, MemorySource, SceneConfig, SceneSource, collate,
};
use dualspeed_model::{GenerateOptions, Generated, Inputs, Llava, Registry, View};
use dualspeed_ops::{AutodiffBackend, Backend};
use dualspeed_train::checkpoint::{self, Contents, HostTensor};
use dualspeed_train::features::pixel_values;
use dualspeed_train::{METRICS_FILE, Mode, StepRecord, TrainConfig, TrainJob, read_metrics, train};

const CONFIG: &str = r#"
seed = 3
steps = 7
stage = "finetune"

[model]
isolator_length = 2

[model.vision]
hidden_size = 16
intermediate_size = 32
num_hidden_layers = 2
num_attention_heads = 2
image_size = 56

[model.text]
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 4
num_key_value_heads = 2
intermediate_size = 48
vocab_size = 178

[model.lora]
r = 4
alpha = 8.0
dropout = 0.1

[mode]
schedule = "periodic"
every = 3

[pruning]
ratio = 0.75
pruner = { name = "divprune" }

[batch]
size = 3

[optim]
lr = 0.02
projector_lr = 0.02
# AdamW divides by the gradient's size: with the usual epsilon, rounding errors of gradients near 0
# would show as whole steps.
eps = 1e-3

[checkpoint]
every = 4
"#;

/// The step after which a run crashes: a slow one is behind it, another before it.
const CRASH: usize = 4;
const NEW_TOKENS: usize = 8;
/// Largest difference between backends, relative to numbers above 1.
const TOLERANCE: f64 = 1e-4;

/// What one backend made.
struct Run {
    records: Vec<StepRecord>,
    /// Trained parameters and the optimiser's moments, by name.
    tensors: BTreeMap<String, HostTensor>,
    /// The answers by view.
    answers: Vec<(&'static str, Generated)>,
}

/// Eight scenes with and four without a picture.
fn source() -> MemorySource {
    let scenes = |text_only, seed, count| {
        let sizes = SceneConfig { image_size: 56, grid: 2, max_objects: 3, ..Default::default() };
        let source = SceneSource::new(SceneConfig { text_only, seed, ..sizes }, count).unwrap();
        (0..count).map(move |index| source.get(index).unwrap()).collect::<Vec<_>>()
    };
    MemorySource::new([scenes(false, 0, 8), scenes(true, 1, 4)].concat(), "mixed")
}

fn train_in<B: AutodiffBackend>(
    dir: &Path,
    device: &B::Device,
    resume: bool,
) -> Llava<B::InnerBackend> {
    let config = TrainConfig::parse(CONFIG, &[]).unwrap();
    // Weights are a function of the seed alone.
    let model: Llava<B> = config.model.init(device, config.seed).unwrap();
    let job = TrainJob { resume, ..TrainJob::new(config, model, Arc::new(source()), dir) };
    let outcome = train(job).unwrap();
    assert_eq!((outcome.steps, outcome.interrupted), (7, false));
    outcome.model
}

/// The records without what depends on the clock, and the tensors of the last checkpoint.
fn results(dir: &Path) -> (Vec<StepRecord>, BTreeMap<String, HostTensor>) {
    let mut records = read_metrics(&dir.join(METRICS_FILE)).unwrap();
    records.iter_mut().for_each(|record| record.time = Default::default());
    let (state, tensors) =
        checkpoint::load(&dir.join("checkpoints/step-00000007"), Contents::All).unwrap();
    assert_eq!(state.step, 7);
    (records, tensors)
}

/// The greedy continuation of the first question, in the full and the pruned view.
fn answers<B: Backend>(model: &Llava<B>, device: &B::Device) -> Vec<(&'static str, Generated)> {
    let config = TrainConfig::parse(CONFIG, &[]).unwrap();
    let mut example = source().get(0).unwrap();
    let asked = example.labels.iter().position(|label| *label != IGNORE_INDEX).unwrap();
    example.input_ids.truncate(asked);
    example.labels.truncate(asked);
    let batch = collate(vec![example]);
    let pruner = Registry::<B>::default().build(&config.pruner()).unwrap();
    let pixels = pixel_values(&batch.images, device);
    let features = model.encode(pixels, &pruner.needs()).unwrap();
    let inputs = Inputs::new(&batch, Some(features));
    let options = GenerateOptions { max_new_tokens: NEW_TOKENS, ..GenerateOptions::default() };
    let pruned = config.fast_view(config.model.num_visual_tokens());
    let answer = |(name, view)| {
        let each = &mut |_| ControlFlow::Continue(());
        let generated = model.generate(&inputs, &view, Some(&*pruner), &options, each).unwrap();
        assert_eq!(generated.ids.len(), NEW_TOKENS, "{name}");
        (name, generated)
    };
    [("full", View::Full), ("pruned", pruned)].map(answer).into()
}

/// Trains, crashes, resumes and answers; a resumed run has the very bits of an uninterrupted one.
fn train_and_answer<B: Backend>() -> Run {
    let device = &B::Device::default();
    let dir = tempfile::tempdir().unwrap();
    let model = train_in::<Autodiff<B>>(dir.path(), device, false);
    let (records, tensors) = results(dir.path());
    let whole = answers(&model, device);

    // A crash before the last checkpoint: a record too many is there already, one is torn.
    std::fs::remove_dir_all(dir.path().join("checkpoints/step-00000007")).unwrap();
    let metrics = dir.path().join(METRICS_FILE);
    let text = std::fs::read_to_string(&metrics).unwrap();
    let end = text.match_indices('\n').nth(CRASH).unwrap().0;
    std::fs::write(&metrics, &text[..end + 20]).unwrap();
    let model = train_in::<Autodiff<B>>(dir.path(), device, true);
    let resumed = results(dir.path());
    assert_eq!(resumed.0, records, "the records of the resumed run");
    for (name, tensor) in &tensors {
        assert!(resumed.1.get(name) == Some(tensor), "`{name}` of the resumed run");
    }
    assert_eq!(resumed.1.len(), tensors.len());
    assert_eq!(answers(&model, device), whole, "the answers of the resumed run");
    let run = Run { records, tensors, answers: whole };
    assert_meaningful(&run);
    run
}

/// That the run did what it is meant to compare.
fn assert_meaningful(run: &Run) {
    let modes: Vec<&str> = run.records.iter().map(|record| record.mode.name()).collect();
    assert_eq!(modes, ["fast", "fast", "slow", "fast", "fast", "slow", "fast"]);
    let mixed = |record: &StepRecord| {
        record.visual_tokens > 0 && record.visual_tokens < 16 * record.samples
    };
    assert!(run.records.iter().any(mixed), "no batch mixes pictures with plain text");
    for record in &run.records {
        let slow = record.mode == Mode::Slow;
        assert_eq!(record.kl > 0.0 && record.kl_tokens > 0, slow, "{record:?}");
        let kept = if slow { record.visual_tokens } else { record.visual_tokens / 4 };
        assert_eq!(record.visual_tokens_kept, kept);
        assert!(record.grad_norm > 0.0);
    }
    let fresh = TrainConfig::parse(CONFIG, &[]).unwrap();
    assert!(run.records[6].ce < run.records[0].ce, "{:?}", run.records);
    for part in ["mm_projector", "mode_isolator", "lora"] {
        assert!(run.tensors.keys().any(|name| name.starts_with(&format!("model.{part}"))));
    }
    // Fresh adapters have a second factor of zeros: what is there was trained.
    let trained = |name: &str| name.starts_with("model.lora") && name.ends_with("lora_b");
    let adapters: Vec<_> = run.tensors.iter().filter(|(name, _)| trained(name)).collect();
    assert_eq!(adapters.len(), 7 * fresh.model.text.num_hidden_layers);
    for (name, tensor) in adapters {
        let largest = tensor.values.iter().fold(0f32, |max, value| max.max(value.abs()));
        assert!(f64::from(largest) > 10.0 * TOLERANCE, "`{name}` was hardly trained: {largest}");
    }
}

/// Largest difference over pairs, relative to numbers above 1.
fn difference(pairs: impl Iterator<Item = (f64, f64)>) -> f64 {
    // `max` would pass over a NaN.
    let relative = |(a, b): (f64, f64)| match (a - b).abs() / b.abs().max(1.0) {
        difference if difference.is_nan() => f64::INFINITY,
        difference => difference,
    };
    pairs.map(relative).fold(0.0, f64::max)
}

/// What differs most between two runs, and by how much.
fn largest_difference(run: &Run, expected: &Run) -> (String, f64) {
    assert_eq!(run.records.len(), expected.records.len());
    let records = run.records.iter().zip(&expected.records);
    let of_steps = records.flat_map(|(a, b)| {
        let counts = |r: &StepRecord| {
            [r.kl_tokens, r.supervised_tokens, r.tokens, r.tokens_unpruned, r.visual_tokens_kept]
        };
        assert_eq!(counts(a), counts(b), "step {}", a.step);
        [("ce", a.ce, b.ce), ("kl", a.kl, b.kl), ("gradient norm", a.grad_norm, b.grad_norm)].map(
            |(name, x, y)| (format!("{name} of step {}", a.step), difference([(x, y)].into_iter())),
        )
    });
    assert!(run.tensors.keys().eq(expected.tensors.keys()));
    let of_tensors = run.tensors.iter().map(|(name, tensor)| {
        let pairs = tensor.values.iter().zip(&expected.tensors[name].values);
        (name.clone(), difference(pairs.map(|(a, b)| (f64::from(*a), f64::from(*b)))))
    });
    let of_answers = run.answers.iter().zip(&expected.answers).map(|((view, a), (_, b))| {
        assert_eq!(a.ids, b.ids, "the answer in the {view} view");
        let pairs = a.log_probs.iter().copied().zip(b.log_probs.iter().copied());
        (format!("log-probabilities in the {view} view"), difference(pairs))
    });
    let all = of_steps.chain(of_tensors).chain(of_answers);
    all.max_by(|a, b| a.1.total_cmp(&b.1)).unwrap()
}

#[test]
fn every_backend_trains_resumes_and_answers_alike() {
    let expected = train_and_answer::<burn_ndarray::NdArray<f32>>();
    let others = [
        ("flex", train_and_answer::<burn_flex::Flex>()),
        #[cfg(feature = "wgpu")]
        ("wgpu", train_and_answer::<burn_wgpu::Wgpu<f32, i32, u32>>()),
    ];
    for (name, run) in &others {
        let (what, largest) = largest_difference(run, &expected);
        println!("{name}: {what} differs most from ndarray, by {largest:.1e}");
        assert!(largest <= TOLERANCE, "{name} and ndarray: {what} differs by {largest}");
    }
}
