//! Families of decoders in files: what configurations say and leave out, what is refused, exports, GGUF.

use std::path::Path;

use dualspeed_model::config::RopeScaling;
use dualspeed_model::export::names::Layout;
use dualspeed_model::export::{ExportOptions, Tokens, export_merged};
use dualspeed_model::import::{AnyModel, Architecture, Gguf, LoadOptions, parse_config};
use dualspeed_model::{DecoderConfig, IMAGE_TOKEN_INDEX, Llava, LlavaConfig, View};
use serde_json::{Value, json};

use crate::fixtures::{
    B, Batch, LOGITS, assert_close, expected, ids, json, load_llava, parity, pixels, values,
};

/// Logits of a question about a picture made of ramps.
fn logits(model: &Llava<B>) -> Vec<f32> {
    let batch = Batch::prompt(&[1, 7, IMAGE_TOKEN_INDEX, 11, 12, 5]);
    let inputs = batch.inputs(model, Some(pixels(model, 1)));
    values(&model.logits(&inputs, &View::Full, None).unwrap())
}

/// Models of Qwen2, and of Qwen3 and SmolLM3 with its tower.
fn models() -> [Llava<B>; 4] {
    let base = load_llava::<B>(&parity("llava_qwen2"), &LoadOptions::default());
    let llama = DecoderConfig { qkv_bias: false, ..base.config.text.clone() };
    // Untied, with a head of its own size: a model that transformers' defaults would not guess.
    let qwen2 = DecoderConfig {
        head_dim: Some(10),
        num_key_value_heads: Some(1),
        tie_word_embeddings: false,
        rope_theta: 5e5,
        rope_scaling: Some(RopeScaling::Linear { factor: 2.0 }),
        ..base.config.text.clone()
    };
    let qwen3 = DecoderConfig { qk_norm: true, head_dim: Some(10), ..llama.clone() };
    let smollm3 = DecoderConfig { nope_layers: vec![0], ..llama };
    let with = |text: DecoderConfig| {
        LlavaConfig { text, ..base.config.clone() }.init(&Default::default(), 3).unwrap()
    };
    let [qwen2, qwen3, smollm3] = [qwen2, qwen3, smollm3].map(with);
    [base, qwen2, qwen3, smollm3]
}

fn export_options() -> ExportOptions {
    let tokens = Tokens { image: 90, bos: Some(1), eos: 2, pad: 0 };
    ExportOptions { shard: 60_000, ..ExportOptions::new(tokens) }
}

#[test]
fn what_is_exported_comes_back_the_same() {
    // Family, class, and the same in LLaVA's own code.
    let kinds = [
        ("qwen2", "Qwen2ForCausalLM", Some(("llava_qwen", "LlavaQwenForCausalLM"))),
        ("qwen2", "Qwen2ForCausalLM", Some(("llava_qwen", "LlavaQwenForCausalLM"))),
        ("qwen3", "Qwen3ForCausalLM", Some(("llava_qwen3", "LlavaQwen3ForCausalLM"))),
        ("smollm3", "SmolLM3ForCausalLM", None),
    ];
    for (model, (family, class, own)) in models().into_iter().zip(kinds) {
        let own = own.map(|(own, class)| (Layout::Original, own, own, class));
        for (layout, model_type, text_type, class) in
            [Some((Layout::Transformers, "llava", family, class)), own].into_iter().flatten()
        {
            let dir = tempfile::tempdir().unwrap();
            export_merged(&model, dir.path(), layout, &export_options()).unwrap();
            let config = json(&dir.path().join("config.json"));
            let text = config.get("text_config").unwrap_or(&config);
            assert_eq!(config["model_type"], model_type);
            assert_eq!(
                (&text["model_type"], &text["architectures"]),
                (&json!(text_type), &json!([class]))
            );
            let again: Llava<B> = load_llava(dir.path(), &LoadOptions::default());
            let [found, expected] = [&again, &model].map(|model| &model.config.text);
            assert_eq!(
                (found.qkv_bias, found.qk_norm, &found.nope_layers, found.head_size()),
                (expected.qkv_bias, expected.qk_norm, &expected.nope_layers, expected.head_size())
            );
            assert_eq!(logits(&again), logits(&model), "{layout:?}");
        }
    }
}

/// What a layout has no word for would be lost in it.
#[test]
fn a_decoder_that_no_layout_has_is_not_exported() {
    let refused = |model: &Llava<B>, layout: Layout, words: &str| {
        let dir = tempfile::tempdir().unwrap();
        let error = export_merged(model, dir.path(), layout, &export_options()).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "nothing half-written stays");
    };
    let [base, .., smollm3] = models();
    let text = DecoderConfig { qk_norm: true, ..base.config.text.clone() };
    let config = LlavaConfig { text, ..base.config.clone() };
    let both: Llava<B> = config.init(&Default::default(), 3).unwrap();
    for layout in [Layout::Transformers, Layout::Original] {
        refused(&both, layout, "norms of queries and keys");
    }
    refused(&smollm3, Layout::Original, "layers that do not rotate");
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
        max_position_embeddings: Some(32_768),
        qkv_bias: true,
        rope_theta: 10_000.0,
        rms_norm_eps: 1e-6,
        tie_word_embeddings: false,
        initializer_range: Some(0.02),
        ..DecoderConfig::default()
    };
    assert_eq!(config, expected);
    // Qwen3's and SmolLM3's.
    let qwen3 = decoder(&json!({ "model_type": "qwen3" }));
    let head_dim = Some(128);
    assert_eq!(qwen3, DecoderConfig { qkv_bias: false, qk_norm: true, head_dim, ..expected });
    let smollm3 = decoder(&json!({ "model_type": "smollm3" }));
    assert_eq!(
        (smollm3.hidden_size, smollm3.num_hidden_layers, smollm3.num_attention_heads),
        (2048, 36, 16)
    );
    assert_eq!((smollm3.kv_heads(), smollm3.rope_theta, smollm3.vocab_size), (4, 2e6, 128_256));
    assert_eq!((smollm3.nope_layers.len(), &smollm3.nope_layers[..3]), (9, &[3, 7, 11][..]));
    assert!(smollm3.tie_word_embeddings);
    let listed =
        json!({ "model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [0, 1, 0] });
    assert_eq!(decoder(&listed).nope_layers, [0, 2]);
    let short =
        json!({ "model_type": "smollm3", "num_hidden_layers": 3, "no_rope_layers": [0, 1] });
    assert!(parsed(&short).unwrap_err().contains("no_rope_layers"));
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
    config["text_config"]["model_type"] = json!("gemma3_text");
    let error = parsed(&config).unwrap_err();
    assert!(error.contains("text_config.model_type") && error.contains("qwen2"), "{error}");
}

/// Biases of Q, K and V, or norms of Q and K; rows of Q and K in transformers' order already.
#[test]
fn gguf_gives_transformers_logits() {
    for family in ["qwen2", "qwen3"] {
        let (floats, ints) = expected(&format!("{family}_gguf"));
        let gguf = Gguf::open(&parity(&format!("{family}.gguf"))).unwrap();
        let checkpoint = gguf.into_checkpoint().unwrap();
        let model = checkpoint.load::<B>(&LoadOptions::default(), &Default::default()).unwrap().0;
        let AnyModel::Decoder(model) = model else { panic!("a {model:?}") };
        assert_eq!((model.config.rope_theta, model.config.kv_heads()), (1e6, 2));
        assert_eq!(model.config.qk_norm, family == "qwen3");
        let input_ids: Vec<i64> = ids(&ints["input_ids"]);
        let logits = values(&model.logits(&input_ids).unwrap());
        assert_close(family, &logits, &floats.values("logits"), LOGITS);
    }
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
    assert!(error.contains("blk.0.attn_q.bias") || error.contains("q_norm"), "{error}");
    let error = renamed("gemma").unwrap_err().to_string();
    assert!(error.contains("general.architecture") && error.contains("gemma"), "{error}");
}
