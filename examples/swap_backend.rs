//! One generic function on every backend compiled in: a tiny model takes five fast and two slow
//! steps, then answers. Losses and answers are the same, up to rounding.
//! `cargo run --release --example swap_backend --features flex`

use std::ops::ControlFlow;
use std::sync::Arc;

use anyhow::Context;
use dualspeed::backend::{BackendChoice, BackendTask};
use dualspeed::data::{IGNORE_INDEX, collate};
use dualspeed::model::{GenerateOptions, Inputs};
use dualspeed::prelude::*;
use dualspeed::train::features::pixel_values;
use dualspeed::train::{METRICS_FILE, StepRecord, read_metrics};

const CONFIG: &str = r#"
steps = 7
mode = { schedule = "periodic", every = 3 } # fast, fast, slow, ...
pruning = { ratio = 0.75, pruner = { name = "divprune" } }
batch = { size = 4 }

[model]
isolator_length = 2
vision = { hidden_size = 16, intermediate_size = 32, num_attention_heads = 2, image_size = 56 }

[model.text]
hidden_size = 32
num_hidden_layers = 2
intermediate_size = 64
vocab_size = 178
"#;

/// The record of every step, and the token ids of the greedy answer to the first question.
type Outcome = (Vec<StepRecord>, Vec<i64>);

fn train_and_answer<B: AutodiffBackend>(device: &B::Device) -> anyhow::Result<Outcome> {
    let config = TrainConfig::parse(CONFIG, &[])?;
    let scenes = SceneConfig { image_size: 56, grid: 2, max_objects: 3, ..SceneConfig::default() };
    let source = Arc::new(SceneSource::new(scenes, 16)?);
    // Weights are a function of the seed, whatever the backend.
    let model: Llava<B> = config.model.init(device, config.seed)?;
    let dir = tempfile::tempdir()?;
    let job = TrainJob::new(config.clone(), model, source.clone(), dir.path());
    let model = train(job)?.model;
    let records = read_metrics(&dir.path().join(METRICS_FILE))?;

    // The first question of the first scene, up to where its answer begins.
    let mut example = source.get(0)?;
    let start = example.labels.iter().position(|label| *label != IGNORE_INDEX);
    example.input_ids.truncate(start.context("the scene has no question")?);
    example.labels.truncate(example.input_ids.len());
    let batch = collate(vec![example]);
    let pruner = Registry::<B::InnerBackend>::default().build(&config.pruner())?;
    let features = model.encode(pixel_values(&batch.images, device), &pruner.needs())?;
    let inputs = Inputs::new(&batch, Some(features));
    let view = config.fast_view(config.model.num_visual_tokens());
    let options = GenerateOptions { max_new_tokens: 8, ..GenerateOptions::default() };
    let each = &mut |_| ControlFlow::Continue(());
    let answer = model.generate(&inputs, &view, Some(&*pruner), &options, each)?;
    Ok((records, answer.ids))
}

/// Hands the generic function to a backend chosen at run time.
struct TrainAndAnswer;

impl BackendTask for TrainAndAnswer {
    type Output = anyhow::Result<Outcome>;

    fn run<B: AutodiffBackend>(self, device: &B::Device) -> anyhow::Result<Outcome> {
        train_and_answer::<B>(device)
    }
}

fn main() -> anyhow::Result<()> {
    let mut runs = Vec::new();
    for choice in BackendChoice::compiled_in() {
        let (records, answer) = choice.run(0, TrainAndAnswer)?;
        for record in &records {
            let StepRecord { step, ce, kl, .. } = record;
            println!("{} {step} {} ce {ce:.6} kl {kl:.6}", choice.name(), record.mode.name());
        }
        println!("{} answers: {answer:?}\n", choice.name());
        runs.push((choice.name(), records, answer));
    }
    let (reference, expected, expected_answer) = &runs[0];
    let largest = |records: &[StepRecord], value: fn(&StepRecord) -> f64| {
        let pairs = records.iter().zip(expected);
        pairs.map(|(a, b)| (value(a) - value(b)).abs()).fold(0.0, f64::max)
    };
    println!("{:<22} {:>8} {:>8} {:>8} answer", format!("against {reference}"), "ce", "kl", "norm");
    for (name, records, answer) in &runs {
        let ce = largest(records, |record| record.ce);
        let kl = largest(records, |record| record.kl);
        let norm = largest(records, |record| record.grad_norm);
        let same = if answer == expected_answer { "the same" } else { "another" };
        println!("{name:<22} {ce:>8.1e} {kl:>8.1e} {norm:>8.1e} {same}");
    }
    Ok(())
}
