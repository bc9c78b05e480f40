//! Questions about one picture, answered line by line from standard input:
//! `cargo run --release --example chat_with_image -- runs/quickstart/seed-0/dualspeed cat.png`

use std::io::BufRead;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use dualspeed::data::{
    Conversation, FitMode, ImageProcessor, Turn, encode_prompt, preprocess_image, scene_tokenizer,
};
use dualspeed::model::{GenerateOptions, IGNORE_INDEX, Inputs, Parts, TextBatch};
use dualspeed::prelude::*;
use dualspeed::run_dir;
use dualspeed::train::features::pixel_values;

fn chat<B: Backend>(dir: &Path, picture: &Path, device: &B::Device) -> anyhow::Result<()> {
    let config = run_dir::read_config(dir)?;
    let scenes = config.data.train.scene_config();
    let template = scenes.map(|scenes| scenes.template).unwrap_or_default();
    let model: Llava<B> = run_dir::load_model(dir, &Parts::default(), device)?;
    let tokenizer = scene_tokenizer()?;

    let processor = ImageProcessor::clip(config.model.vision.geometry().image_size, FitMode::Pad);
    let image = Arc::new(preprocess_image(picture, &processor)?);
    // The picture is encoded once; every question reuses its features.
    let features = model.encode(pixel_values(&[image], device), &Needs::none())?;
    let options = GenerateOptions {
        max_new_tokens: 16,
        eos_token_ids: vec![tokenizer.eos_id()],
        ..GenerateOptions::default()
    };
    for question in std::io::stdin().lock().lines() {
        let question = question?;
        if question.trim().is_empty() {
            continue;
        }
        let turns = vec![Turn::open(format!("<image>\n{question}"))];
        let input_ids =
            encode_prompt(&Conversation { system: None, turns }, &template, &tokenizer)?;
        let labels = [vec![IGNORE_INDEX; input_ids.len()]];
        let inputs = Inputs {
            text: TextBatch { input_ids: &[input_ids], labels: &labels },
            features: Some(features.clone()),
            tilings: &[],
            sample_ids: &["question".to_owned()],
            prompts: std::slice::from_ref(&question),
        };
        let go_on = &mut |_| ControlFlow::Continue(());
        let generated = model.generate(&inputs, &View::Full, None, &options, go_on)?;
        println!("{question}\n  {}", tokenizer.decode(&generated.ids)?);
    }
    Ok(())
}

fn main() -> anyhow::Result<()> {
    let args: Vec<_> = std::env::args_os().skip(1).collect();
    let [dir, picture] = args.as_slice() else {
        anyhow::bail!("usage: chat_with_image RUN_DIR PICTURE < questions");
    };
    chat::<burn_ndarray::NdArray<f32>>(Path::new(dir), Path::new(picture), &Default::default())
}
