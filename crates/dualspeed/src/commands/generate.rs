//! `dualspeed generate`: an answer about a picture.

use std::sync::Arc;

use dualspeed_data::{
    Conversation, FitMode, ImageProcessor, SpecialTokens, Template, TextTokenizer, Turn,
    encode_prompt, preprocess_image, scene_tokenizer,
};
use dualspeed_model::{GenerateOptions, Llava, Needs, View, VisionInput};
use dualspeed_ops::{AutodiffBackend, Backend};
use dualspeed_train::TrainConfig;
use dualspeed_train::features::pixel_values;

use super::Outcome;
use crate::cli::GenerateArgs;
use crate::extensions::{Extensions, registry};
use crate::run;

pub fn run<B: AutodiffBackend, E: Extensions>(
    args: &GenerateArgs,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    println!("{}", answer::<B::InnerBackend, E>(args, device)?);
    Ok(Outcome::Done)
}

fn answer<B: Backend, E: Extensions>(
    args: &GenerateArgs,
    device: &B::Device,
) -> anyhow::Result<String> {
    let config = run::config(&args.run)?;
    let (tokenizer, template, system, fit) = text_side(&config)?;
    anyhow::ensure!(!args.prompt.trim().is_empty(), "--prompt is empty; ask something");
    let model: Llava<B> = run::load(&args.run, device)?;
    let pruner = registry::<B, E>(device).build(&config.pruner())?;

    let user = match &args.image {
        Some(_) => format!("<image>\n{}", args.prompt),
        None => args.prompt.clone(),
    };
    let conversation = Conversation { system, turns: vec![Turn::open(user)] };
    let input_ids = encode_prompt(&conversation, template, &tokenizer)?;
    let view = match args.keep {
        Some(keep) => View::Pruned { keep, isolator: args.isolator },
        None => View::Full,
    };
    let needs = if args.keep.is_some() { pruner.needs() } else { Needs::default() };
    let visual = match &args.image {
        Some(path) => {
            let processor = ImageProcessor::clip(config.model.vision.image_size, fit);
            let image = Arc::new(preprocess_image(path, &processor)?);
            Some(model.encode(VisionInput::Pixels(pixel_values(&[image], device)), needs)?)
        }
        None => None,
    };
    let options = GenerateOptions {
        max_new_tokens: args.max_new_tokens,
        temperature: args.temperature,
        top_p: args.top_p,
        eos_token_ids: vec![tokenizer.eos_id()],
        seed: args.seed,
        prompt: args.prompt.clone(),
    };
    let ids = model.generate(&input_ids, visual.as_ref(), &view, Some(&*pruner), &options)?;
    Ok(tokenizer.decode(&ids)?)
}

/// Tokenizer, template, system prompt and image fitting that the run was trained with.
fn text_side(
    config: &TrainConfig,
) -> anyhow::Result<(TextTokenizer, Template, Option<String>, FitMode)> {
    if let Some(json) = &config.data.train.llava_json {
        let tokenizer = TextTokenizer::from_file(&json.tokenizer, &SpecialTokens::default())?;
        return Ok((tokenizer, json.template, json.system.clone(), json.fit));
    }
    let template = config.data.train.scene_config().map(|s| s.template).unwrap_or_default();
    Ok((scene_tokenizer()?, template, None, FitMode::Pad))
}
