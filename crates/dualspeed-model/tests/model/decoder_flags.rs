//! A decoder's flags: biases and norms of queries and keys, a head size of its own. Against a decoder in plain operations.

use burn::tensor::Tensor;
use burn::tensor::activation::{silu, softmax};
use dualspeed_model::language::{Decoder, DecoderOptions, KvCache};
use dualspeed_model::nn::{Linear, RmsNorm};
use dualspeed_model::{DecoderConfig, Llava, LlavaConfig, ParamGroup, ParamInfo, View, memory};

use crate::support::{
    B, Batch, assert_close, config, device, encode, inference, lora, model, random, scrambled,
    values,
};

/// Every flag by itself, and all of them.
fn flagged() -> Vec<LlavaConfig> {
    let base = config().text;
    let texts = [
        DecoderConfig { qkv_bias: true, ..base.clone() },
        DecoderConfig { qk_norm: true, ..base.clone() },
        DecoderConfig { head_dim: Some(6), ..base.clone() },
        DecoderConfig { head_dim: Some(2), num_key_value_heads: Some(1), ..base.clone() },
        DecoderConfig { qkv_bias: true, qk_norm: true, head_dim: Some(10), ..base },
    ];
    texts.map(|text| LlavaConfig { text, ..config() }).to_vec()
}

/// A model none of whose biases is 0 and none of whose norms is 1.
fn built(config: &LlavaConfig) -> Llava<B> {
    scrambled(model::<B>(config), "language_model.layers", 0.3)
}

fn linear(layer: &Linear<B>, x: &Tensor<B, 2>) -> Tensor<B, 2> {
    let y = x.clone().matmul(layer.weight.val());
    match &layer.bias {
        Some(bias) => y + bias.val().unsqueeze(),
        None => y,
    }
}

fn norm<const D: usize>(norm: &RmsNorm<B>, x: Tensor<B, D>) -> Tensor<B, D> {
    let mean = (x.clone() * x.clone()).mean_dim(D - 1);
    x / (mean + 1e-5).sqrt() * norm.weight.val().unsqueeze()
}

/// Turns `[heads, s, d]` by positions counted from 0: `(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)` of the two halves.
fn rotated(config: &DecoderConfig, x: Tensor<B, 3>) -> Tensor<B, 3> {
    let [_, s, d] = x.dims();
    let half = d / 2;
    let angle =
        |i: usize, pair: usize| i as f64 * config.rope_theta.powf(-(2.0 * pair as f64) / d as f64);
    let table = |f: fn(f64) -> f64| {
        let numbers: Vec<f32> =
            (0..s * half).map(|at| f(angle(at / half, at % half)) as f32).collect();
        Tensor::<B, 1>::from_floats(&numbers[..], &device::<B>()).reshape([1, s, half])
    };
    let (cos, sin) = (table(f64::cos), table(f64::sin));
    let (a, b) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
    let first = a.clone() * cos.clone() - b.clone() * sin.clone();
    Tensor::cat(vec![first, b * cos + a * sin], 2)
}

/// One sequence `[s, d]` through the decoder, block by block, heads and masks in full.
fn naive(decoder: &Decoder<B>, mut x: Tensor<B, 2>) -> Tensor<B, 2> {
    let config = &decoder.config;
    let (heads, kv_heads, head) =
        (config.num_attention_heads, config.kv_heads(), config.head_size());
    let s = x.dims()[0];
    let later: Vec<f32> = (0..s * s).map(|at| if at % s > at / s { -1e30 } else { 0.0 }).collect();
    let later = Tensor::<B, 1>::from_floats(&later[..], &device::<B>()).reshape([1, s, s]);
    for layer in &decoder.layers {
        let attention = &layer.self_attn;
        let normed = norm(&layer.input_layernorm, x.clone());
        let split = |projection, heads: usize| {
            linear(projection, &normed).reshape([s, heads, head]).swap_dims(0, 1)
        };
        let normed_heads = |x, by: &Option<RmsNorm<B>>| match by {
            Some(by) => norm(by, x),
            None => x,
        };
        let q = normed_heads(split(&attention.q_proj, heads), &attention.q_norm);
        let k = normed_heads(split(&attention.k_proj, kv_heads), &attention.k_norm);
        let (q, k) = (rotated(config, q), rotated(config, k));
        let v = split(&attention.v_proj, kv_heads);
        let shared = |x: Tensor<B, 3>| {
            let rows = (0..heads).map(|h| x.clone().narrow(0, h * kv_heads / heads, 1));
            Tensor::cat(rows.collect(), 0)
        };
        let scores = q.matmul(shared(k).swap_dims(1, 2)) / (head as f64).sqrt() + later.clone();
        let mixed = softmax(scores, 2).matmul(shared(v));
        let mixed = mixed.swap_dims(0, 1).reshape([s, heads * head]);
        x = x + linear(&attention.o_proj, &mixed);
        let normed = norm(&layer.post_attention_layernorm, x.clone());
        let gate = silu(linear(&layer.mlp.gate_proj, &normed));
        x = x + linear(&layer.mlp.down_proj, &(gate * linear(&layer.mlp.up_proj, &normed)));
    }
    norm(&decoder.norm, x)
}

#[test]
fn every_flag_is_what_it_says() {
    for config in flagged() {
        let model = built(&config);
        let embeds = random::<B, 3>([2, 7, 16], 3);
        let found =
            values(&model.language_model.forward(embeds.clone(), DecoderOptions::default()));
        for sample in 0..2 {
            let one = embeds.clone().narrow(0, sample, 1).reshape([7, 16]);
            let expected = values(&naive(&model.language_model, one));
            assert_close(&found[sample * 7 * 16..(sample + 1) * 7 * 16], &expected, 2e-5);
        }
    }
}

#[test]
fn cached_decoding_equals_the_whole_forward_with_any_flag() {
    for config in flagged() {
        let model = built(&config);
        let decoder = &model.language_model;
        let embeds = random::<B, 3>([2, 9, 16], 3);
        let whole = values(&decoder.forward(embeds.clone(), DecoderOptions::default()));
        let mut cache = KvCache::new(2);
        let mut stepwise = vec![Vec::new(); 2];
        for (start, length) in [(0, 4), (4, 1), (5, 1), (6, 3)] {
            let options = DecoderOptions { cache: Some(&mut cache), ..DecoderOptions::default() };
            let hidden = values(&decoder.forward(embeds.clone().narrow(1, start, length), options));
            for (sample, rows) in hidden.chunks(length * 16).enumerate() {
                stepwise[sample].extend_from_slice(rows);
            }
        }
        assert_close(&whole, &stepwise.concat(), 1e-5);
    }
}

#[test]
fn merged_adapters_are_the_same_function_with_any_flag() {
    for config in flagged() {
        let hidden = |model: &Llava<B>| {
            let (batch, features) = (Batch::mixed(), encode(model, 3));
            let inputs = batch.inputs(Some(&features));
            values(&model.forward(&inputs, &View::Full, None, &inference()).unwrap().hidden)
        };
        let base = built(&config);
        let adapted = base.clone().with_lora(&lora(), &device::<B>(), 5).unwrap();
        assert_close(&hidden(&adapted), &hidden(&base), 1e-6);
        let adapted = scrambled(adapted, "lora.", 0.3);
        let changed = hidden(&adapted);
        let apart: f32 = changed.iter().zip(hidden(&base)).map(|(a, b)| (a - b).abs()).sum();
        assert!(apart > 1.0, "{apart}");
        let merged = adapted.merge_lora();
        assert!(merged.lora.is_none());
        assert_close(&hidden(&merged), &changed, 1e-4);
    }
}

/// Parameters are there by the checkpoints' names, have the shapes of the flags, and are counted.
#[test]
fn flags_decide_which_parameters_there_are() {
    for mut config in flagged() {
        config.lora = Some(lora());
        let text = &config.text;
        let model = model::<B>(&config);
        let parameters = model.parameters();
        let shape = |path: &str| {
            let found = parameters.iter().find(|info| info.path == path);
            found.map(|info| info.shape.clone())
        };
        let layer = "language_model.layers.1.self_attn";
        let (heads, kv_heads, head) = (text.num_attention_heads, text.kv_heads(), text.head_size());
        assert_eq!(shape(&format!("{layer}.q_proj.weight")), Some(vec![16, heads * head]));
        assert_eq!(shape(&format!("{layer}.v_proj.weight")), Some(vec![16, kv_heads * head]));
        assert_eq!(shape(&format!("{layer}.o_proj.weight")), Some(vec![heads * head, 16]));
        assert_eq!(shape("lora.layers.0.o_proj.lora_a"), Some(vec![heads * head, 3]));
        let bias = text.qkv_bias.then(|| vec![kv_heads * head]);
        assert_eq!(shape(&format!("{layer}.k_proj.bias")), bias);
        assert_eq!(shape(&format!("{layer}.o_proj.bias")), None);
        let norm = text.qk_norm.then(|| vec![head]);
        assert_eq!(shape(&format!("{layer}.q_norm.weight")), norm);
        let count = |group| -> u64 {
            let own = parameters.iter().filter(|info| ParamGroup::of(&info.path) == Some(group));
            own.map(|info| ParamInfo::num_elements(info) as u64).sum()
        };
        let groups = [
            ParamGroup::VisionTower,
            ParamGroup::Projector,
            ParamGroup::Isolator,
            ParamGroup::LanguageModel,
            ParamGroup::Lora,
        ];
        assert_eq!(groups.map(count), memory::parameters(&config));
    }
}
