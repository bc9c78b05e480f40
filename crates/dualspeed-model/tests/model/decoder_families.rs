//! Families of decoders beside Llama's, and Qwen2 in a LLaVA, against transformers and peft: logits, text, gradients, adapters.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use dualspeed_model::config::{ProjectorType, VitConfig};
use dualspeed_model::export::export_adapter;
use dualspeed_model::export::names::peft_key;
use dualspeed_model::import::names::path_of;
use dualspeed_model::import::{Adapter, LoadOptions};
use dualspeed_model::{
    Decoder, DualSpeedObjective, Forward, GenerateOptions, IMAGE_TOKEN_INDEX, Init, Llava, Losses,
    Objective, ObjectiveInputs, ParamPath, StepContext, Trainable, View, assemble,
};
use dualspeed_ops::Backend;
use serde_json::Value;

use crate::fixtures::{
    A, B, Batch, Floats, LOGITS, assert_close, expected, gradients, ids, load_decoder, load_llava,
    parity, relative_difference, values,
};

/// How far 32-bit gradients may lie from 64-bit ones, in their norm.
const GRADIENTS: f64 = 5e-6;

/// A fixture with its configuration as the family's files are published.
fn as_published(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        std::fs::copy(parity(name).join(from), dir.path().join(to)).unwrap();
    };
    copy("config.published.json", "config.json");
    copy("model.safetensors", "model.safetensors");
    dir
}

/// A decoder as the language model of a LLaVA that sees nothing: what trains it.
fn trainable<T: Backend>(decoder: Decoder<T>) -> Llava<T> {
    let device = Default::default();
    let vit = VitConfig {
        hidden_size: 8,
        intermediate_size: 8,
        num_hidden_layers: 2,
        num_attention_heads: 2,
        image_size: 8,
        patch_size: 4,
        ..VitConfig::default()
    };
    let tower = vit.init::<T>(&Init::new(0, &device).at("vision_tower").frozen());
    assemble(tower.into(), decoder, ProjectorType::default(), &device, 0).unwrap()
}

fn losses<T: Backend>(model: &Llava<T>, batch: &Batch) -> Losses<T> {
    let inputs = batch.inputs(model, None);
    let ctx = StepContext::inference(0);
    let student: Forward<T> = model.forward(&inputs, &View::Full, None, &ctx).unwrap();
    let lm_head = model.lm_head_weight();
    let inputs = ObjectiveInputs { student: &student, teacher: None, lm_head };
    DualSpeedObjective::default().losses(&inputs).unwrap()
}

fn loss<T: Backend>(model: &Llava<T>, batch: &Batch) -> Tensor<T, 1> {
    let losses = losses(model, batch);
    losses.loss(losses.tokens).unwrap()
}

/// Moves one number of one parameter.
struct Nudge<'a> {
    walk: ParamPath,
    path: &'a str,
    at: usize,
    by: f32,
}

impl<T: Backend> ModuleMapper<T> for Nudge<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.walk.enter(name, container);
    }
    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.walk.exit();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<T, D>>) -> Param<Tensor<T, D>> {
        if self.walk.path() != self.path {
            return param;
        }
        let (at, by) = (self.at, self.by);
        param.map(|tensor| {
            let (shape, mut numbers) = (tensor.dims(), values(&tensor));
            numbers[at] += by;
            Tensor::from_data(TensorData::new(numbers, shape), &tensor.device())
        })
    }
}

/// The slope of the loss along one number of a parameter (in Burn's layout), by central differences.
fn slope(model: &Llava<B>, batch: &Batch, path: &str, at: usize) -> f32 {
    let moved = |by: f32| {
        let mut nudge = Nudge { walk: ParamPath::new(""), path, at, by };
        values(&loss(&model.clone().map(&mut nudge), batch))[0]
    };
    let step = 5e-3;
    (moved(step) - moved(-step)) / (2.0 * step)
}

fn assert_slope(model: &Llava<B>, batch: &Batch, path: &str, at: usize, gradient: f32) {
    let numeric = slope(model, batch, path, at);
    println!("{path}[{at}]: {gradient:.5}, by differences {numeric:.5}");
    assert!((numeric - gradient).abs() <= 2e-4 + 0.01 * gradient.abs(), "{path}[{at}]");
}

/// The place of the steepest number.
fn steepest(gradient: &[f32]) -> usize {
    (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs())).unwrap()
}

/// Compares every gradient that the fixture has with the model's, by key.
fn assert_gradients(
    floats: &Floats,
    found: &BTreeMap<String, Vec<f32>>,
    path: impl Fn(&str) -> String,
) -> usize {
    let keys: Vec<&str> = floats.keys().filter(|key| key.starts_with("gradient.")).collect();
    let mut worst = (0.0, "");
    for key in &keys {
        let path = path(key.trim_start_matches("gradient."));
        let found = found.get(&path).unwrap_or_else(|| panic!("{path} has no gradient"));
        let difference = relative_difference(found, &floats.values(key));
        if difference > worst.0 {
            worst = (difference, *key);
        }
    }
    println!("{} gradients, the furthest {:.2e} of its norm: {}", keys.len(), worst.0, worst.1);
    assert!(worst.0 <= GRADIENTS, "{}: {:e}", worst.1, worst.0);
    keys.len()
}

fn supervised(name: &str, input_ids: &Value) -> Batch {
    Batch::new(vec![ids(input_ids)], vec![ids(&expected(name).1["labels"])])
}

/// Decoders of Qwen2 and Qwen3, and one of SmolLM3.
const DECODERS: [&str; 5] =
    ["qwen2_tied", "qwen2_untied", "qwen3_tied", "qwen3_untied", "smollm3_tied"];

#[test]
fn decoders_give_transformers_logits_and_text() {
    for name in DECODERS {
        let model: Decoder<B> = load_decoder(&parity(name));
        let config = &model.config;
        let family = name.split('_').next().unwrap();
        assert_eq!(model.lm_head.is_none(), name.ends_with("_tied"));
        assert_eq!((config.qkv_bias, config.qk_norm), (family == "qwen2", family == "qwen3"));
        let attention = &model.layers[0].self_attn;
        assert_eq!(attention.k_proj.bias.is_some(), family == "qwen2");
        assert_eq!(attention.k_norm.is_some(), family == "qwen3");
        assert!(attention.o_proj.bias.is_none());
        match name {
            // Heads of 12 where d / heads is 8.
            "qwen2_tied" | "qwen3_tied" => {
                assert_eq!((config.head_size(), config.kv_heads()), (12, 2))
            }
            "smollm3_tied" => assert_eq!(config.nope_layers, [1]),
            _ => assert!(config.nope_layers.is_empty()),
        }
        let (floats, ints) = expected(name);
        let input_ids: Vec<i64> = ids(&ints["input_ids"]);
        let logits = values(&model.logits(&input_ids).unwrap());
        assert_close(name, &logits, &floats.values("logits"), LOGITS);

        let greedy: Vec<i64> = ids(&ints["greedy"]);
        assert_eq!(greedy.len(), 32);
        let options = GenerateOptions { max_new_tokens: 32, ..GenerateOptions::default() };
        let go_on = &mut |_| ControlFlow::Continue(());
        assert_eq!(model.generate(&input_ids, &options, go_on).unwrap().ids, greedy, "{name}");

        let published: Decoder<B> = load_decoder(as_published(name).path());
        assert_eq!(published.config, model.config);
        assert_eq!(values(&published.logits(&input_ids).unwrap()), logits, "{name}");
    }
}

#[test]
fn full_tuning_has_transformers_gradients() {
    for (name, count) in DECODERS.into_iter().zip([14, 15, 13, 14, 11]) {
        let (floats, ints) = expected(name);
        let batch = supervised(name, &ints["input_ids"]);
        let model = trainable(load_decoder::<A>(&parity(name)));
        let model = model.with_trainable(Trainable::full()).unwrap();
        let losses = losses(&model, &batch);
        assert_eq!(losses.tokens as u64, ints["supervised_tokens"].as_u64().unwrap());
        let loss = losses.loss(losses.tokens).unwrap();
        let reference = ints["loss"].as_f64().unwrap() as f32;
        assert_close(&format!("{name} loss"), &values(&loss), &[reference], 1e-5);
        let found = gradients(&model, "", &loss.backward());
        let compared = assert_gradients(&floats, &found, |key| path_of(key).unwrap());
        assert_eq!(compared, count, "{name}");
        assert!(found.keys().all(|path| path.starts_with("language_model.")), "{:?}", found.keys());

        let own: &[&str] = match name.split('_').next().unwrap() {
            "qwen2" => {
                &["0.self_attn.q_proj.bias", "0.self_attn.k_proj.bias", "1.self_attn.v_proj.bias"]
            }
            "qwen3" => &["0.self_attn.q_norm.weight", "1.self_attn.k_norm.weight"],
            _ => &["2.input_layernorm.weight"],
        };
        let paths = own.iter().chain(&["1.input_layernorm.weight"]);
        let inner = trainable(load_decoder::<B>(&parity(name)));
        for path in paths {
            // Vectors: their order is the same in both layouts.
            let path = format!("language_model.layers.{path}");
            let gradient = &found[&path];
            for at in [0, steepest(gradient)] {
                assert_slope(&inner, &batch, &path, at, gradient[at]);
            }
        }
    }
}

#[test]
fn an_adapter_on_a_decoder_gives_pefts_logits_and_gradients() {
    for family in ["qwen2", "qwen3"] {
        check_adapter(&format!("{family}_peft"), &format!("{family}_untied"));
    }
}

fn check_adapter(name: &str, base_name: &str) {
    let (floats, ints) = expected(name);
    let base = expected(base_name).1;
    let input_ids: Vec<i64> = ids(&base["input_ids"]);
    let adapter = Adapter::open(&parity(name)).unwrap();
    let config = adapter.config.clone().unwrap();
    assert_eq!((config.r, config.alpha, config.targets.len()), (4, 8.0, 7));
    let plain = trainable(load_decoder::<B>(&parity(base_name)));
    let adapted = adapter.apply(plain.clone(), &Default::default()).unwrap();
    let logits = |model: &Llava<B>| {
        let batch = Batch::prompt(&input_ids);
        values(&model.logits(&batch.inputs(model, None), &View::Full, None).unwrap())
    };
    let reference = floats.values("logits");
    let moved = relative_difference(&logits(&plain), &reference);
    assert!(moved > 0.1, "the adapter changes nothing: {moved}");
    assert_close("adapter", &logits(&adapted), &reference, LOGITS);
    assert_close("merged", &logits(&adapted.clone().merge_lora()), &reference, LOGITS);

    // A decoder needs no LLaVA around it; but one that sees is not folded into one that does not.
    let decoder: Decoder<B> = load_decoder(&parity(base_name));
    let folded = adapter.merge_into(decoder, &Default::default()).unwrap();
    assert_close("folded", &values(&folded.logits(&input_ids).unwrap()), &reference, LOGITS);
    let sees = Adapter::open(&parity("llava_qwen2_peft")).unwrap();
    let error = sees.merge_into(folded, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("multi_modal_projector"), "{error}");

    let batch = supervised(name, &base["input_ids"]);
    let model = trainable(load_decoder::<A>(&parity(base_name)));
    let model = adapter.apply(model, &Default::default()).unwrap();
    let model = model.with_trainable(Trainable::finetune_lora()).unwrap();
    let loss = loss(&model, &batch);
    let expected_loss = ints["loss"].as_f64().unwrap() as f32;
    assert_close("adapter loss", &values(&loss), &[expected_loss], 1e-5);
    let found = gradients(&model, "", &loss.backward());
    // PEFT has the decoder's own module names where it is not in a LLaVA.
    let keys: BTreeMap<String, &String> = found
        .keys()
        .map(|path| (peft_key(path).unwrap().replace(".language_model.", "."), path))
        .collect();
    assert_eq!(assert_gradients(&floats, &found, |key| keys[key].clone()), 42);
    assert_eq!(found.len(), 42, "nothing but the adapters has a gradient");

    // [out, r] in the file, [r, out] here.
    let (path, r) = ("lora.layers.1.v_proj.lora_b", 4);
    let at = steepest(&found[path]);
    let turned = (at % r) * (found[path].len() / r) + at / r;
    assert_slope(&adapted, &batch, path, turned, found[path][at]);
}

/// Logits of a fixture's sample, and the text that follows.
pub fn check_llava(name: &str, model: &Llava<B>) {
    let (floats, ints) = expected(name);
    let pixel_values = floats.tensor::<B, 4>("pixel_values");
    let mut first = 0;
    for sample in 0..2 {
        let input_ids: Vec<i64> = ids(&ints["input_ids"][sample]);
        let images = input_ids.iter().filter(|id| **id == IMAGE_TOKEN_INDEX).count();
        let pixels = pixel_values.clone().narrow(0, first, images);
        first += images;
        let batch = Batch::prompt(&input_ids);
        let inputs = batch.inputs(model, Some(pixels));
        let logits = values(&model.logits(&inputs, &View::Full, None).unwrap());
        let what = format!("{name} {sample}");
        assert_close(&what, &logits, &floats.values(&format!("logits.{sample}")), LOGITS);
        let greedy: Vec<i64> = ids(&ints["greedy"][sample]);
        let options =
            GenerateOptions { max_new_tokens: greedy.len(), ..GenerateOptions::default() };
        let go_on = &mut |_| ControlFlow::Continue(());
        let found = model.generate(&inputs, &View::Full, None, &options, go_on).unwrap();
        assert_eq!((found.ids, greedy.len()), (greedy, 32), "{what}");
    }
}

#[test]
fn a_llava_over_it_gives_transformers_logits_and_text() {
    let model = load_llava(&parity("llava_qwen2"), &LoadOptions::default());
    assert!(model.config.text.qkv_bias && model.config.text.tie_word_embeddings);
    check_llava("llava_qwen2", &model);
    let published = load_llava(as_published("llava_qwen2").path(), &LoadOptions::default());
    assert_eq!(published.config, model.config);
    check_llava("llava_qwen2", &published);
}

fn peft_logits(model: &Llava<B>) -> Vec<f32> {
    let (floats, ints) = expected("llava_qwen2");
    let input_ids: Vec<i64> = ids(&ints["input_ids"][0]);
    let images = input_ids.iter().filter(|id| **id == IMAGE_TOKEN_INDEX).count();
    let pixels = floats.tensor::<B, 4>("pixel_values").narrow(0, 0, images);
    let batch = Batch::prompt(&input_ids);
    values(&model.logits(&batch.inputs(model, Some(pixels)), &View::Full, None).unwrap())
}

#[test]
fn an_adapter_on_a_llava_gives_pefts_logits_and_goes_there_and_back() {
    let reference =
        Floats::open(&parity("llava_qwen2_peft").join("expected.safetensors")).values("logits");
    let base = || load_llava::<B>(&parity("llava_qwen2"), &LoadOptions::default());
    let adapter = Adapter::open(&parity("llava_qwen2_peft")).unwrap();
    let adapted = adapter.apply(base(), &Default::default()).unwrap();
    let found = peft_logits(&adapted);
    assert!(relative_difference(&peft_logits(&base()), &reference) > 0.1);
    assert_close("llava adapter", &found, &reference, LOGITS);
    assert_close("llava merged", &peft_logits(&adapted.clone().merge_lora()), &reference, LOGITS);

    let dir = tempfile::tempdir().unwrap();
    export_adapter(&adapted, dir.path(), "../llava_qwen2").unwrap();
    let again = Adapter::open(dir.path()).unwrap();
    assert_eq!(again.config, adapter.config);
    let again = again.apply(base(), &Default::default()).unwrap();
    assert_eq!(peft_logits(&again), found);
    // Factor by factor under the names that peft itself wrote.
    let factors = |dir: &Path| -> Vec<String> {
        let file = Floats::open(&dir.join("adapter_model.safetensors"));
        file.keys().filter(|key| key.contains("lora_")).map(str::to_owned).collect()
    };
    assert_eq!(factors(dir.path()), factors(&parity("llava_qwen2_peft")));
}
