//! Our configuration as `config.json` of transformers or of LLaVA's own code.

use serde_json::{Value, json};

use super::options::{ExportOptions, TOWER, Tokens};
use crate::config::{
    DecoderConfig, HiddenAct, LlavaConfig, LoraConfig, ProjectorType, RopeScaling, SelectFeature,
    VisionConfig, VitConfig, VitFamily,
};
use crate::formats::import::tensor::FloatType;

/// PyTorch's name of an element type.
fn torch(dtype: FloatType) -> &'static str {
    match dtype {
        FloatType::F32 => "float32",
        FloatType::F16 => "float16",
        FloatType::Bf16 => "bfloat16",
    }
}

/// `LlavaConfig` or `LlavaNextConfig` of transformers.
pub(super) fn transformers(config: &LlavaConfig, tokens: &Tokens, dtype: FloatType) -> Value {
    let (class, model_type) = match &config.anyres {
        Some(_) => ("LlavaNextForConditionalGeneration", "llava_next"),
        None => ("LlavaForConditionalGeneration", "llava"),
    };
    let mut json = json!({
        "architectures": [class],
        "model_type": model_type,
        "image_token_index": tokens.image,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": true,
        "image_seq_length": config.vision.geometry().num_tokens,
        "tie_word_embeddings": config.text.tie_word_embeddings,
        "torch_dtype": torch(dtype),
        "text_config": decoder(&config.text, tokens),
        "vision_config": vision(&config.vision),
    });
    if let Some(vit) = config.vision.vit() {
        json["vision_feature_layer"] = json!(vit.mm_vision_select_layer);
        json["vision_feature_select_strategy"] = json!(match vit.mm_vision_select_feature {
            SelectFeature::Patch if vit.family == VitFamily::Clip => "default",
            SelectFeature::Patch | SelectFeature::ClsPatch => "full",
        });
    }
    if let Some(anyres) = &config.anyres {
        json["image_grid_pinpoints"] = json!(anyres.image_grid_pinpoints);
    }
    json
}

/// `config.json` of LLaVA's own code.
pub(super) fn original(
    config: &LlavaConfig,
    vit: &VitConfig,
    options: &ExportOptions,
    dtype: FloatType,
) -> Value {
    let mut json = decoder(&config.text, &options.tokens);
    let projector = match &config.mm_projector_type {
        ProjectorType::Mlp2xGelu => "mlp2x_gelu",
        ProjectorType::Linear => "linear",
        ProjectorType::Custom(custom) => &custom.kind,
    };
    let feature = match vit.mm_vision_select_feature {
        SelectFeature::Patch => "patch",
        SelectFeature::ClsPatch => "cls_patch",
    };
    let (class, model_type) = match (config.text.qkv_bias, config.text.qk_norm) {
        (true, _) => ("LlavaQwenForCausalLM", "llava_qwen"),
        (false, true) => ("LlavaQwen3ForCausalLM", "llava_qwen3"),
        (false, false) => ("LlavaLlamaForCausalLM", "llava_llama"),
    };
    let own = json!({
        "architectures": [class],
        "model_type": model_type,
        "torch_dtype": torch(dtype),
        "mm_vision_tower": options.tower.as_deref().unwrap_or(TOWER),
        "mm_hidden_size": config.vision.geometry().hidden_size,
        "mm_vision_select_layer": vit.mm_vision_select_layer,
        "mm_vision_select_feature": feature,
        "mm_projector_type": projector,
        "mm_patch_merge_type": "flat",
        "mm_use_im_start_end": false,
        "mm_use_im_patch_token": false,
        "use_mm_proj": true,
    });
    merge(&mut json, own);
    if let Some(aspect) = &options.image_aspect_ratio {
        json["image_aspect_ratio"] = json!(aspect);
    }
    if let Some(anyres) = &config.anyres {
        // Pairs of width and height there.
        let pinpoints: Vec<_> =
            anyres.image_grid_pinpoints.iter().map(|[height, width]| [width, height]).collect();
        let own = json!({
            "image_aspect_ratio": "anyres",
            "mm_patch_merge_type": "spatial_unpad",
            "image_grid_pinpoints": pinpoints,
        });
        merge(&mut json, own);
    }
    json
}

fn merge(into: &mut Value, from: Value) {
    if let (Value::Object(into), Value::Object(from)) = (into, from) {
        into.extend(from);
    }
}

/// `Qwen2Config` of transformers where q, k and v have biases, `Qwen3Config` where q and k have norms,
/// `SmolLM3Config` where layers do not rotate, else `LlamaConfig`.
fn decoder(config: &DecoderConfig, tokens: &Tokens) -> Value {
    // Both ways of saying it: `rope_theta` and `rope_scaling` up to 4.x, `rope_parameters` from 5.0.
    let (scaling, mut parameters) = match config.rope_scaling {
        None => (Value::Null, json!({ "rope_type": "default" })),
        Some(scaling) => {
            let value = match scaling {
                RopeScaling::Linear { factor } => {
                    json!({ "rope_type": "linear", "factor": factor })
                }
                RopeScaling::Llama3 {
                    factor,
                    low_freq_factor,
                    high_freq_factor,
                    original_max_position_embeddings,
                } => json!({
                    "rope_type": "llama3",
                    "factor": factor,
                    "low_freq_factor": low_freq_factor,
                    "high_freq_factor": high_freq_factor,
                    "original_max_position_embeddings": original_max_position_embeddings,
                }),
            };
            (value.clone(), value)
        }
    };
    parameters["rope_theta"] = json!(config.rope_theta);
    let mut json = json!({
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.kv_heads(),
        "head_dim": config.head_size(),
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": parameters,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings.unwrap_or(4096),
        "tie_word_embeddings": config.tie_word_embeddings,
        "bos_token_id": tokens.bos,
        "eos_token_id": tokens.eos,
        "pad_token_id": tokens.pad,
    });
    let own = match (config.qkv_bias, config.qk_norm) {
        _ if !config.nope_layers.is_empty() => json!({
            "architectures": ["SmolLM3ForCausalLM"],
            "model_type": "smollm3",
            "attention_bias": false,
            "mlp_bias": false,
            "use_sliding_window": false,
            // A 1 for each layer that does rotate, whatever the name says.
            "no_rope_layers": (0..config.num_hidden_layers)
                .map(|layer| u8::from(!config.nope_layers.contains(&layer)))
                .collect::<Vec<_>>(),
        }),
        (true, _) => json!({
            "architectures": ["Qwen2ForCausalLM"],
            "model_type": "qwen2",
            "use_sliding_window": false,
        }),
        (false, true) => json!({
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "attention_bias": false,
            "use_sliding_window": false,
        }),
        (false, false) => json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "attention_bias": false,
            "mlp_bias": false,
        }),
    };
    merge(&mut json, own);
    json
}

/// The tower's configuration; of a kind that transformers' LLaVA knows or of one that only this reads back.
fn vision(config: &VisionConfig) -> Value {
    match config {
        VisionConfig::Vit(config) => vit(config),
        VisionConfig::EfficientNet(own) => {
            json!({ "model_type": config.kind(), "image_size": own.image_size })
        }
        VisionConfig::Custom(own) => {
            let mut json = json!(own);
            json["model_type"] = json!(own.kind);
            json
        }
    }
}

/// `CLIPVisionConfig` or `SiglipVisionConfig` of transformers.
pub(super) fn vit(config: &VitConfig) -> Value {
    let act = match config.hidden_act {
        HiddenAct::QuickGelu => "quick_gelu",
        HiddenAct::Gelu => "gelu",
        HiddenAct::GeluPytorchTanh => "gelu_pytorch_tanh",
    };
    let mut json = json!({
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": act,
    });
    let own = match config.family {
        VitFamily::Clip => json!({
            "architectures": ["CLIPVisionModel"],
            "model_type": "clip_vision_model",
            "projection_dim": config.projection_dim.unwrap_or(512),
        }),
        VitFamily::Siglip => json!({
            "architectures": ["SiglipVisionModel"],
            "model_type": "siglip_vision_model",
            // The pooling head is no part of what a language model reads.
            "vision_use_head": false,
        }),
    };
    merge(&mut json, own);
    json
}

/// `adapter_config.json` of peft.
pub(super) fn peft(config: &LoraConfig, base: &str) -> Value {
    let targets: Vec<&str> = config.targets.iter().map(|target| target.name()).collect();
    json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": config.r,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        // The vision tower has layers of these names too.
        "target_modules": format!(".*language_model.*\\.({})", targets.join("|")),
        "modules_to_save": ["multi_modal_projector"],
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "use_rslora": config.use_rslora,
        "use_dora": false,
        "rank_pattern": {},
        "alpha_pattern": {},
    })
}
