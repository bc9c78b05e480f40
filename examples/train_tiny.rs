//! The library alone: a tiny model on 64 scenes, trained fast and slow, then scored in three views.
//! `cargo run --release --example train_tiny [-- RUN_DIR]`

use std::path::PathBuf;
use std::sync::Arc;

use dualspeed::data::source_registry;
use dualspeed::experiment::{evaluation_views, test_source};
use dualspeed::model::Parts;
use dualspeed::prelude::*;
use dualspeed::run_dir;
use dualspeed::train::{EvalOptions, METRICS_FILE, read_metrics};

const CONFIG: &str = r#"
steps = 200

[data.train]
samples = 64

[model]
isolator_length = 4

[model.text]
hidden_size = 32
num_hidden_layers = 1
num_attention_heads = 2
intermediate_size = 64
vocab_size = 178

[mode] # every fourth step sees all visual tokens, the others one in ten
schedule = "periodic"
every = 4

[batch]
size = 8

[optim]
lr = 3e-3
"#;

fn train_tiny<B: AutodiffBackend>(dir: PathBuf, device: &B::Device) -> anyhow::Result<()> {
    let config = TrainConfig::parse(CONFIG, &[])?;
    // Fresh weights, embedded vision tower.
    let model: Llava<B> = run_dir::initial_model(&config, &Parts::default(), device)?;
    let source: Arc<dyn ExampleSource> =
        config.data.train.open(&config.model, config.seed, config.compat, &source_registry())?;
    let job = TrainJob { overwrite: true, ..TrainJob::new(config.clone(), model, source, &dir) };
    let outcome = train(job)?;

    let records = read_metrics(&dir.join(METRICS_FILE))?;
    if let (Some(first), Some(last)) = (records.first(), records.last()) {
        println!("cross entropy {:.3} -> {:.3} in {} steps", first.ce, last.ce, outcome.steps);
    }
    let test = test_source(&config, 64)?;
    let pruner = Registry::<B::InnerBackend>::default().build(&config.pruner())?;
    let (views, options) = (evaluation_views(&config), EvalOptions::default());
    let report = evaluate(&outcome.model, &test, None, &views, Some(&*pruner), device, options)?;
    for view in &report.views {
        let (name, tokens) = (&view.name, view.visual_tokens);
        println!("{name:<20} {tokens:>4.0} visual tokens  accuracy {:.1} %", 100.0 * view.accuracy);
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let dir = std::env::args_os().nth(1).map(PathBuf::from);
    let dir = dir.unwrap_or_else(|| std::env::temp_dir().join("dualspeed-train-tiny"));
    train_tiny::<burn::backend::Autodiff<burn_ndarray::NdArray<f32>>>(dir, &Default::default())
}
