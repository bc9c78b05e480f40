//! The decoder: cache, adapters, generation.

use burn::tensor::{Int, Tensor};
use dualspeed_model::language::{DecoderOptions, KvCache};
use dualspeed_model::{
    GenerateOptions, IMAGE_TOKEN_INDEX, Llava, LlavaConfig, ModelError, PrunerSpec, Registry,
    StepContext, Trainable, View,
};

use crate::support::{
    A, B, Batch, assert_close, config, device, encode, generate, inference, lora, model, random,
    scrambled, values,
};

#[test]
fn a_cached_decode_equals_the_full_forward() {
    let model = model::<B>(&config());
    let decoder = &model.language_model;
    let embeds = random::<B, 3>([2, 9, 16], 3);
    let full = values(&decoder.forward(embeds.clone(), DecoderOptions::default()));
    let mut cache = KvCache::new(2);
    let mut stepwise = vec![Vec::new(); 2];
    // A prompt of four, then one position at a time.
    for (start, length) in [(0, 4), (4, 1), (5, 1), (6, 3)] {
        let options = DecoderOptions { cache: Some(&mut cache), ..DecoderOptions::default() };
        let hidden = values(&decoder.forward(embeds.clone().narrow(1, start, length), options));
        for (sample, rows) in hidden.chunks(length * 16).enumerate() {
            stepwise[sample].extend_from_slice(rows);
        }
    }
    assert_eq!(cache.seen(), 9);
    assert_close(&full, &stepwise.concat(), 1e-5);
}

#[test]
fn wanted_rows_equal_those_of_all_rows() {
    let model = model::<B>(&config());
    let embeds = random::<B, 3>([2, 7, 16], 3);
    let all = values(&model.language_model.forward(embeds.clone(), DecoderOptions::default()));
    let options = DecoderOptions { wanted: Some(&[12, 0, 5]), ..DecoderOptions::default() };
    let some = values(&model.language_model.forward(embeds, options));
    let expected = [12, 0, 5].map(|row| &all[row * 16..(row + 1) * 16]).concat();
    assert_close(&some, &expected, 1e-5);
}

/// Greedy generation by whole forwards: the last row of a longer and longer prompt.
fn without_cache(model: &Llava<B>, prompt: &[i64], view: &View, steps: usize) -> Vec<i64> {
    let features = encode(model, 1);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let mut ids = prompt.to_vec();
    for _ in 0..steps {
        // A label of any value makes the row before it supervised.
        let mut batch = Batch::prompt(&[ids.clone(), vec![0]].concat());
        batch.labels[0][ids.len()] = 0;
        let inputs = batch.inputs(Some(&features));
        let ctx = StepContext::inference(0);
        let forward = model.forward(&inputs, view, Some(&*pruner), &ctx).unwrap();
        let logits = forward.hidden.matmul(model.lm_head_weight());
        ids.push(logits.argmax(1).into_data().iter::<i64>().next().unwrap());
    }
    ids[prompt.len()..].to_vec()
}

#[test]
fn generation_equals_repeated_forwards_in_both_views() {
    for (tied, multiple) in [(true, 1), (false, 16)] {
        let mut config = config();
        config.text.tie_word_embeddings = tied;
        config.pad_to_multiple = multiple;
        let model = model::<B>(&config);
        let features = encode(&model, 1);
        let prompt = [1, IMAGE_TOKEN_INDEX, 4, 5];
        let batch = Batch::prompt(&prompt);
        let inputs = batch.inputs(Some(&features));
        let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
        for view in [View::Full, View::Pruned { keep: 4, isolator: true }] {
            let options = GenerateOptions { max_new_tokens: 6, ..GenerateOptions::default() };
            let generated = generate(&model, &inputs, &view, Some(&*pruner), &options).unwrap();
            assert_eq!(generated.ids, without_cache(&model, &prompt, &view, 6), "{view:?}");
            assert!(!generated.finished);
            let end = generated.ids[2];
            let stop = GenerateOptions { eos_token_ids: vec![end], ..options };
            let stopped = generate(&model, &inputs, &view, Some(&*pruner), &stop).unwrap();
            let first = generated.ids.iter().position(|id| *id == end).unwrap();
            assert_eq!(stopped.ids, generated.ids[..first]);
            assert!(stopped.finished);
            // Whoever watches may stop it: the token that was refused is the last.
            let mut seen = Vec::new();
            let watch = &mut |id| {
                seen.push(id);
                match seen.len() {
                    2 => std::ops::ControlFlow::Break(()),
                    _ => std::ops::ControlFlow::Continue(()),
                }
            };
            let options = GenerateOptions { eos_token_ids: Vec::new(), ..stop };
            let broken = model.generate(&inputs, &view, Some(&*pruner), &options, watch).unwrap();
            assert_eq!((&broken.ids[..], broken.finished), (&generated.ids[..2], false));
            assert_eq!(seen, broken.ids);
        }
        let hot = GenerateOptions { temperature: 5.0, seed: 3, ..GenerateOptions::default() };
        let sample = |options: &GenerateOptions| {
            generate(&model, &inputs, &View::Full, None, options).unwrap().ids
        };
        assert_eq!(sample(&hot), sample(&hot));
        assert_ne!(sample(&hot), sample(&GenerateOptions { seed: 4, ..hot.clone() }));
        let cold = GenerateOptions { temperature: -1.0, ..hot };
        let error = generate(&model, &inputs, &View::Full, None, &cold).unwrap_err();
        assert!(matches!(error, ModelError::Generate { field: "temperature", .. }));
    }
}

/// A prompt is never cut nor padded: logits at all of its positions, images in their places.
#[test]
fn logits_of_a_prompt_are_those_of_every_position() {
    let config = LlavaConfig { max_length: Some(3), pad_to_multiple: 32, ..config() };
    let model = model::<B>(&config);
    let features = encode(&model, 1);
    let batch = Batch::prompt(&[1, IMAGE_TOKEN_INDEX, 4, 5]);
    let logits = model.logits(&batch.inputs(Some(&features)), &View::Full, None).unwrap();
    assert_eq!(logits.dims(), [3 + 16, 23]);
    let projected = model.mm_projector.forward(features.hidden());
    let text = |ids: &[i64]| {
        model.language_model.embed(Tensor::<B, 1, Int>::from_ints(ids, &device::<B>())).unsqueeze()
    };
    let embeds = Tensor::cat(vec![text(&[1]), projected, text(&[4, 5])], 1);
    let hidden = model.language_model.forward(embeds, DecoderOptions::default());
    assert_close(&values(&logits), &values(&hidden.matmul(model.lm_head_weight())), 1e-5);
}

fn hidden(model: &Llava<B>, ctx: &StepContext) -> Vec<f32> {
    let (batch, features) = (Batch::mixed(), encode(model, 3));
    let inputs = batch.inputs(Some(&features));
    values(&model.forward(&inputs, &View::Full, None, ctx).unwrap().hidden)
}

/// Adapters that do something: B is zero at init.
fn trained(model: Llava<B>) -> Llava<B> {
    scrambled(model, "lora.", 0.3)
}

#[test]
fn fresh_adapters_change_nothing_and_merged_ones_are_the_same_function() {
    let base = model::<B>(&config());
    let ctx = inference();
    let adapted = base.clone().with_lora(&lora(), &device::<B>(), 5).unwrap();
    assert_close(&hidden(&adapted, &ctx), &hidden(&base, &ctx), 1e-6);
    let adapted = trained(adapted);
    let changed = hidden(&adapted, &ctx);
    let distance: f32 = changed.iter().zip(hidden(&base, &ctx)).map(|(a, b)| (a - b).abs()).sum();
    assert!(distance > 1.0, "{distance}");
    let merged = adapted.merge_lora();
    assert!(merged.lora.is_none());
    assert_close(&hidden(&merged, &ctx), &changed, 1e-4);
}

#[test]
fn dropout_is_a_function_of_seed_step_and_sample() {
    let model = trained(model::<B>(&config()).with_lora(&lora(), &device::<B>(), 5).unwrap());
    let at = StepContext::training;
    let dropped = hidden(&model, &at(1, 2));
    assert_eq!(dropped, hidden(&model, &at(1, 2)));
    assert_ne!(dropped, hidden(&model, &at(1, 3)));
    assert_ne!(dropped, hidden(&model, &at(2, 2)));
    assert_ne!(dropped, hidden(&model, &StepContext { dropout: false, ..at(1, 2) }));
    // The text-only sample alone draws the masks it draws in the batch.
    let alone = Batch::mixed().samples(1..2);
    let alone = model.forward(&alone.inputs(None), &View::Full, None, &at(1, 2)).unwrap();
    assert_close(&values(&alone.hidden), &dropped[32..64], 1e-5);
}

#[test]
fn initial_weights_are_a_function_of_the_seed() {
    let table = |seed| {
        let model: Llava<B> = config().init(&device::<B>(), seed).unwrap();
        values(&model.language_model.embed(Tensor::<B, 1, Int>::from_ints([0, 1], &device::<B>())))
    };
    assert_eq!(table(1), table(1));
    assert_ne!(table(1), table(2));
    // The same weights on an autodiff backend.
    let model: Llava<A> = config().init(&device::<A>(), 1).unwrap();
    let model = model.with_trainable(Trainable::pretrain()).unwrap();
    let ids = Tensor::<A, 1, Int>::from_ints([0, 1], &device::<A>());
    assert_eq!(values(&model.language_model.embed(ids)), table(1));
}
