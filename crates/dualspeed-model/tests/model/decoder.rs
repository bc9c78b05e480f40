//! The decoder: cache, adapters, generation.

use burn::tensor::{Int, Tensor};
use dualspeed_model::llama::{KvCache, LlamaOptions};
use dualspeed_model::{
    GenerateOptions, IMAGE_TOKEN_INDEX, Llava, ModelError, PrunerSpec, Registry, StepContext,
    Trainable, View,
};

use crate::support::{
    A, B, Batch, assert_close, config, device, encode, lora, model, random, values,
};

#[test]
fn a_cached_decode_equals_the_full_forward() {
    let model = model::<B>(&config());
    let decoder = &model.language_model;
    let embeds = random::<B, 3>([2, 9, 16], 3);
    let full = values(&decoder.forward(embeds.clone(), LlamaOptions::default()));
    let mut cache = KvCache::new(2);
    let mut stepwise = vec![Vec::new(); 2];
    // A prompt of four, then one position at a time.
    for (start, length) in [(0, 4), (4, 1), (5, 1), (6, 3)] {
        let options = LlamaOptions { cache: Some(&mut cache), ..LlamaOptions::default() };
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
    let all = values(&model.language_model.forward(embeds.clone(), LlamaOptions::default()));
    let options = LlamaOptions { rows: Some(&[12, 0, 5]), ..LlamaOptions::default() };
    let some = values(&model.language_model.forward(embeds, options));
    let expected = [12, 0, 5].map(|row| &all[row * 16..(row + 1) * 16]).concat();
    assert_close(&some, &expected, 1e-5);
}

/// Greedy generation by whole forwards: the last row of a longer and longer prompt.
fn without_cache(model: &Llava<B>, prompt: &[i64], view: &View, steps: usize) -> Vec<i64> {
    let visual = encode(model, 1);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let mut ids = prompt.to_vec();
    for _ in 0..steps {
        // A label of any value makes the row before it supervised.
        let input_ids = [[ids.clone(), vec![0]].concat()];
        let mut labels = [vec![-100; ids.len() + 1]];
        labels[0][ids.len()] = 0;
        let batch = dualspeed_model::TextBatch { input_ids: &input_ids, labels: &labels };
        let ctx = StepContext::inference(0, vec!["prompt".into()]);
        let forward = model.forward(batch, Some(&visual), view, Some(&*pruner), &ctx).unwrap();
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
        let visual = encode(&model, 1);
        let prompt = [1, IMAGE_TOKEN_INDEX, 4, 5];
        let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
        for view in [View::Full, View::Pruned { keep: 4, isolator: true }] {
            let options = GenerateOptions { max_new_tokens: 6, ..GenerateOptions::default() };
            let generated =
                model.generate(&prompt, Some(&visual), &view, Some(&*pruner), &options).unwrap();
            assert_eq!(generated, without_cache(&model, &prompt, &view, 6), "{view:?}");
            let stop = GenerateOptions { eos_token_ids: vec![generated[2]], ..options };
            let stopped =
                model.generate(&prompt, Some(&visual), &view, Some(&*pruner), &stop).unwrap();
            let first = generated.iter().position(|id| *id == generated[2]).unwrap();
            assert_eq!(stopped, generated[..first]);
        }
        let hot = GenerateOptions { temperature: 5.0, seed: 3, ..GenerateOptions::default() };
        let sample = |options: &GenerateOptions| {
            model.generate(&prompt, Some(&visual), &View::Full, None, options).unwrap()
        };
        assert_eq!(sample(&hot), sample(&hot));
        assert_ne!(sample(&hot), sample(&GenerateOptions { seed: 4, ..hot.clone() }));
        let cold = GenerateOptions { temperature: -1.0, ..hot };
        let error = model.generate(&prompt, Some(&visual), &View::Full, None, &cold).unwrap_err();
        assert!(matches!(error, ModelError::Generate { field: "temperature", .. }));
    }
}

fn hidden(model: &Llava<B>, ctx: &StepContext) -> Vec<f32> {
    let (batch, visual) = (Batch::mixed(), encode(model, 3));
    values(&model.forward(batch.text(), Some(&visual), &View::Full, None, ctx).unwrap().hidden)
}

/// Adapters that do something: B is zero at init.
fn trained(model: Llava<B>) -> Llava<B> {
    struct Fill;
    impl burn::module::ModuleMapper<B> for Fill {
        fn map_float<const D: usize>(
            &mut self,
            param: burn::module::Param<Tensor<B, D>>,
        ) -> burn::module::Param<Tensor<B, D>> {
            param.map(|tensor| {
                let shape: [usize; D] = tensor.dims();
                random::<B, D>(shape, shape.iter().product::<usize>() as u64).mul_scalar(0.3)
            })
        }
    }
    use burn::module::Module;
    Llava { lora: model.lora.map(&mut Fill), ..model }
}

#[test]
fn fresh_adapters_change_nothing_and_merged_ones_are_the_same_function() {
    let base = model::<B>(&config());
    let ctx = Batch::mixed().ctx();
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
    let ids = Batch::mixed().ctx().sample_ids;
    let at = |seed, step| StepContext::training(seed, step, ids.clone());
    let dropped = hidden(&model, &at(1, 2));
    assert_eq!(dropped, hidden(&model, &at(1, 2)));
    assert_ne!(dropped, hidden(&model, &at(1, 3)));
    assert_ne!(dropped, hidden(&model, &at(2, 2)));
    assert_ne!(dropped, hidden(&model, &StepContext { dropout: false, ..at(1, 2) }));
    // The text-only sample alone draws the masks it draws in the batch.
    let batch = Batch::mixed();
    let alone = Batch {
        input_ids: vec![batch.input_ids[1].clone()],
        labels: vec![batch.labels[1].clone()],
    };
    let ctx = StepContext::training(1, 2, vec![ids[1].clone()]);
    let alone = model.forward(alone.text(), None, &View::Full, None, &ctx).unwrap();
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
