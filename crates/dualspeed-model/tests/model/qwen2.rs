//! Qwen2 alone and in a LLaVA, against transformers and peft: logits, text, gradients, files there and back.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use dualspeed_model::config::{LlavaConfig, ProjectorType, RopeScaling, VitConfig};
use dualspeed_model::export::names::{Layout, peft_key};
use dualspeed_model::export::{ExportOptions, Tokens, export_adapter, export_merged};
use dualspeed_model::import::names::path_of;
use dualspeed_model::import::{Adapter, AnyModel, Architecture, Gguf, LoadOptions, parse_config};
use dualspeed_model::{
    Decoder, DecoderConfig, DualSpeedObjective, Forward, GenerateOptions, IMAGE_TOKEN_INDEX, Init,
    Llava, Losses, Objective, ObjectiveInputs, ParamPath, StepContext, Trainable, View, assemble,
};
use dualspeed_ops::Backend;
use serde_json::{Value, json};

use crate::fixtures::{
    A, B, Batch, Floats, assert_close, gradients, ids, json, load_decoder, load_llava, parity,
    pixels, relative_difference, values,
};

/// How far 32-bit logits may lie apart.
const LOGITS: f32 = 1e-4;
/// How far 32-bit gradients may lie from 64-bit ones, in their norm.
const GRADIENTS: f64 = 5e-6;

/// A fixture with its configuration as Qwen2.5's files are published.
fn as_published(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let copy = |from: &str, to: &str| {
        std::fs::copy(parity(name).join(from), dir.path().join(to)).unwrap();
    };
    copy("config.published.json", "config.json");
    copy("model.safetensors", "model.safetensors");
    dir
}

fn expected(name: &str) -> (Floats, Value) {
    let dir = parity(name);
    (Floats::open(&dir.join("expected.safetensors")), json(&dir.join("expected.json")))
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

#[test]
fn decoders_give_transformers_logits_and_text() {
    for name in ["qwen2_tied", "qwen2_untied"] {
        let model: Decoder<B> = load_decoder(&parity(name));
        let tied = name == "qwen2_tied";
        assert_eq!((model.config.qkv_bias, model.lm_head.is_none()), (true, tied));
        let biased = &model.layers[0].self_attn;
        assert!(biased.k_proj.bias.is_some() && biased.o_proj.bias.is_none());
        if tied {
            // Heads of 12 where d / heads is 8.
            assert_eq!((model.config.head_size(), model.config.kv_heads()), (12, 2));
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
    for (name, count) in [("qwen2_tied", 14), ("qwen2_untied", 15)] {
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

        let paths = [
            "language_model.layers.0.self_attn.q_proj.bias",
            "language_model.layers.0.self_attn.k_proj.bias",
            "language_model.layers.1.self_attn.v_proj.bias",
            "language_model.layers.1.input_layernorm.weight",
        ];
        let inner = trainable(load_decoder::<B>(&parity(name)));
        for path in paths {
            // Vectors: their order is the same in both layouts.
            let gradient = &found[path];
            for at in [0, steepest(gradient)] {
                assert_slope(&inner, &batch, path, at, gradient[at]);
            }
        }
    }
}

#[test]
fn an_adapter_on_a_decoder_gives_pefts_logits_and_gradients() {
    let (floats, ints) = expected("qwen2_peft");
    let base = expected("qwen2_untied").1;
    let input_ids: Vec<i64> = ids(&base["input_ids"]);
    let adapter = Adapter::open(&parity("qwen2_peft")).unwrap();
    assert_eq!((adapter.config.r, adapter.config.alpha, adapter.config.targets.len()), (4, 8.0, 7));
    let plain = trainable(load_decoder::<B>(&parity("qwen2_untied")));
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
    let decoder: Decoder<B> = load_decoder(&parity("qwen2_untied"));
    let folded = adapter.merge_into(decoder, &Default::default()).unwrap();
    assert_close("folded", &values(&folded.logits(&input_ids).unwrap()), &reference, LOGITS);
    let sees = Adapter::open(&parity("llava_qwen2_peft")).unwrap();
    let error = sees.merge_into(folded, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("multi_modal_projector"), "{error}");

    let batch = supervised("qwen2_peft", &base["input_ids"]);
    let model = trainable(load_decoder::<A>(&parity("qwen2_untied")));
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
fn check_llava(name: &str, model: &Llava<B>) {
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

/// Logits of a question about a picture made of ramps.
fn logits(model: &Llava<B>) -> Vec<f32> {
    let batch = Batch::prompt(&[1, 7, IMAGE_TOKEN_INDEX, 11, 12, 5]);
    let inputs = batch.inputs(model, Some(pixels(model, 1)));
    values(&model.logits(&inputs, &View::Full, None).unwrap())
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

#[test]
fn what_is_exported_comes_back_the_same() {
    let tokens = Tokens { image: 90, bos: Some(1), eos: 2, pad: 0 };
    let options = ExportOptions { dtype: None, shard: 60_000, tokens };
    let base = load_llava::<B>(&parity("llava_qwen2"), &LoadOptions::default());
    // Untied, with a head of its own size: a model that transformers' defaults would not guess.
    let config = LlavaConfig {
        text: DecoderConfig {
            head_dim: Some(10),
            num_key_value_heads: Some(1),
            tie_word_embeddings: false,
            rope_theta: 5e5,
            rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
            ..base.config.text.clone()
        },
        ..base.config.clone()
    };
    let other: Llava<B> = config.init(&Default::default(), 3).unwrap();
    let layouts = [
        (Layout::Transformers, "llava", "qwen2", "Qwen2ForCausalLM"),
        (Layout::Original, "llava_qwen", "llava_qwen", "LlavaQwenForCausalLM"),
    ];
    for model in [base, other] {
        for (layout, model_type, text_type, class) in layouts {
            let dir = tempfile::tempdir().unwrap();
            export_merged(&model, dir.path(), layout, &options).unwrap();
            let config = json(&dir.path().join("config.json"));
            let text = config.get("text_config").unwrap_or(&config);
            assert_eq!(config["model_type"], model_type);
            assert_eq!(
                (&text["model_type"], &text["architectures"]),
                (&json!(text_type), &json!([class]))
            );
            let again: Llava<B> = load_llava(dir.path(), &LoadOptions::default());
            assert!(again.config.text.qkv_bias);
            assert_eq!(again.config.text.head_size(), model.config.text.head_size());
            assert_eq!(logits(&again), logits(&model), "{layout:?}");
        }
    }
}

/// Norms of queries and keys would be lost in Qwen2's configuration.
#[test]
fn a_decoder_that_no_layout_has_is_not_exported() {
    let base = load_llava::<B>(&parity("llava_qwen2"), &LoadOptions::default());
    let text = DecoderConfig { qk_norm: true, ..base.config.text.clone() };
    let config = LlavaConfig { text, ..base.config.clone() };
    let model: Llava<B> = config.init(&Default::default(), 3).unwrap();
    let tokens = Tokens { image: 90, bos: Some(1), eos: 2, pad: 0 };
    let options = ExportOptions { dtype: None, shard: 1 << 20, tokens };
    let dir = tempfile::tempdir().unwrap();
    for layout in [Layout::Transformers, Layout::Original] {
        let error = export_merged(&model, dir.path(), layout, &options).unwrap_err().to_string();
        assert!(error.contains("norms of queries and keys"), "{error}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing half-written stays");
}

fn parsed(config: &Value) -> Result<Architecture, String> {
    let text = serde_json::to_vec(config).unwrap();
    let parsed = parse_config(Path::new("config.json"), &text);
    parsed.map(|config| config.architecture).map_err(|error| error.to_string())
}

fn decoder(config: &Value) -> DecoderConfig {
    match parsed(config).unwrap() {
        Architecture::Decoder(config) => config,
        other => panic!("a {other:?}"),
    }
}

/// As `Qwen2Config` of transformers has them.
#[test]
fn what_a_file_leaves_out_is_the_class_default() {
    let config = decoder(&json!({ "model_type": "qwen2" }));
    let expected = DecoderConfig {
        hidden_size: 4096,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: Some(32),
        intermediate_size: 22_016,
        vocab_size: 151_936,
        qkv_bias: true,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        initializer_range: Some(0.02),
        ..DecoderConfig::default()
    };
    assert_eq!(config, expected);
    // `null` is "as many as query heads", not the default.
    let config = decoder(
        &json!({ "model_type": "qwen2", "num_attention_heads": 16, "num_key_value_heads": null }),
    );
    assert_eq!(config.kv_heads(), 16);
    // The families that were there before keep theirs.
    let mistral = decoder(&json!({ "model_type": "mistral", "sliding_window": null }));
    assert_eq!(
        (mistral.kv_heads(), mistral.intermediate_size, mistral.qkv_bias),
        (8, 14_336, false)
    );
    let llama = decoder(&json!({ "model_type": "llama" }));
    assert_eq!((llama.kv_heads(), llama.intermediate_size, llama.vocab_size), (32, 11_008, 32_000));
}

#[test]
fn what_its_configuration_asks_for_and_is_not_there_is_refused_by_name() {
    let with = |changes: Value| {
        let mut config = json(&parity("qwen2_tied/config.published.json"));
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        parsed(&config)
    };
    // Switched off, a window of any length means nothing; switched on, one that covers all positions hides nothing.
    for harmless in [
        json!({ "use_sliding_window": false, "sliding_window": 8 }),
        json!({ "use_sliding_window": true, "sliding_window": 512 }),
        json!({ "use_sliding_window": true, "sliding_window": null }),
        json!({ "layer_types": ["full_attention", "full_attention"] }),
        json!({ "use_sliding_window": true, "layer_types": ["full_attention", "sliding_attention"] }),
    ] {
        assert!(with(harmless.clone()).is_ok(), "{harmless}");
    }
    for (field, changes) in [
        ("sliding_window` = 511", json!({ "use_sliding_window": true, "sliding_window": 511 })),
        (
            "sliding_window` = 4096",
            json!({ "model_type": "qwen2", "use_sliding_window": true,
            "max_position_embeddings": 8192, "sliding_window": 4096 }),
        ),
        ("layer_types", json!({ "layer_types": ["full_attention", "sliding_attention"] })),
        ("layer_types", json!({ "layer_types": ["linear_attention", "full_attention"] })),
        ("rope_type", json!({ "rope_scaling": { "type": "yarn", "factor": 4.0 } })),
        ("partial_rotary_factor", json!({ "partial_rotary_factor": 0.5 })),
        ("hidden_act", json!({ "hidden_act": "gelu" })),
        ("attention_bias", json!({ "attention_bias": true })),
        ("model_type", json!({ "model_type": "qwen2_moe" })),
    ] {
        let error = with(changes).unwrap_err();
        assert!(error.contains(field) && error.contains("config.json"), "{field}: {error}");
    }
    let mut config = json(&parity("llava_qwen2/config.published.json"));
    config["text_config"]["model_type"] = json!("qwen3");
    let error = parsed(&config).unwrap_err();
    assert!(error.contains("text_config.model_type") && error.contains("qwen2"), "{error}");
}

/// Biases of Q, K and V; rows of Q and K in transformers' order already.
#[test]
fn gguf_gives_transformers_logits() {
    let (floats, ints) = expected("qwen2_gguf");
    let gguf = Gguf::open(&parity("qwen2.gguf")).unwrap();
    let checkpoint = gguf.into_checkpoint().unwrap();
    let model = checkpoint.load::<B>(&LoadOptions::default(), &Default::default()).unwrap().0;
    let AnyModel::Decoder(model) = model else { panic!("a {model:?}") };
    assert_eq!((model.config.rope_theta, model.config.kv_heads()), (1e6, 2));
    let input_ids: Vec<i64> = ids(&ints["input_ids"]);
    let logits = values(&model.logits(&input_ids).unwrap());
    assert_close("gguf", &logits, &floats.values("logits"), LOGITS);
    // Under another architecture's name the same file is not silently another model.
    let bytes = std::fs::read(parity("qwen2.gguf")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let renamed = |name: &str| {
        let mut bytes = bytes.clone();
        let places: Vec<usize> =
            (0..bytes.len() - 5).filter(|at| &bytes[*at..*at + 5] == b"qwen2").collect();
        places.into_iter().for_each(|at| bytes[at..at + 5].copy_from_slice(name.as_bytes()));
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        let checkpoint = Gguf::open(&path).unwrap().into_checkpoint()?;
        checkpoint.load::<B>(&LoadOptions::default(), &Default::default()).map(drop)
    };
    let error = renamed("llama").unwrap_err().to_string();
    assert!(error.contains("blk.0.attn_q.bias"), "{error}");
    let error = renamed("qwen3").unwrap_err().to_string();
    assert!(error.contains("general.architecture") && error.contains("qwen3"), "{error}");
}
