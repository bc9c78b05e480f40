//! `config.json` of transformers and of LLaVA's own code, read into our configuration.
//!
//! What a file leaves out is what the class in transformers defaults to, which is not what our own structs default to:
//! the published `llava-1.5-7b-hf` says nothing of its decoder but the vocabulary.

use std::path::Path;

use serde_json::Value;

use super::decoder::{Family, decoder};
use super::error::ImportError;
use super::json::Json;
use super::recognise::quantised;
use crate::config::{
    AnyresConfig, CustomVisionConfig, DecoderConfig, EFFICIENTNET_LITE0, EfficientNetConfig,
    HiddenAct, LlavaConfig, ProjectorType, SelectFeature, VisionConfig, VitConfig, VitFamily,
};
use crate::vision::clip_text::ClipTextConfig;

/// What kind of model a `config.json` describes.
#[derive(Clone, Debug, PartialEq)]
pub enum Architecture {
    /// `LlavaForConditionalGeneration`, `LlavaNextForConditionalGeneration`, or LLaVA's own `llava_llama` and its like.
    Llava(Box<LlavaConfig>),
    /// A decoder alone: Llama, Vicuna, Mistral, SmolLM2, Qwen2.
    Decoder(DecoderConfig),
    /// CLIP or SigLIP, or its vision half.
    Clip(VitConfig),
}

/// A `config.json`, understood.
#[derive(Clone, Debug, PartialEq)]
pub struct HfConfig {
    /// What it describes.
    pub architecture: Architecture,
    /// The id that stands for visual tokens in transformers' prompts.
    pub image_token_id: Option<i64>,
    /// Whether it is of LLaVA's own code, whose file has no sizes of the vision tower: [`VisionConfig`] is then a placeholder until
    /// the tower's own file is read.
    pub original: bool,
    /// LLaVA's own code names the vision tower's checkpoint here and may keep its weights elsewhere.
    pub mm_vision_tower: Option<String>,
    /// How LLaVA's own code makes rectangles into squares: `pad`, `square` or `anyres`.
    pub image_aspect_ratio: Option<String>,
    /// The model that this one was made from, as transformers notes it: a directory or a name on the hub.
    pub name_or_path: Option<String>,
    /// How the weights are quantised, if the file says that they are.
    pub quantised: Option<String>,
    /// The type weights are said to be saved in.
    pub dtype: Option<String>,
    /// Whether the file says that the head is the embedding table; the keys in the checkpoint decide.
    pub tied: Option<bool>,
}

/// Reads `config.json`.
///
/// # Errors
/// [`ImportError`] names the file and the first field that this model has no counterpart for.
pub fn read_config(path: &Path) -> Result<HfConfig, ImportError> {
    let text = std::fs::read(path).map_err(ImportError::read(path))?;
    parse_config(path, &text)
}

/// [`read_config`] of text; `path` is what errors call it.
///
/// # Errors
/// As [`read_config`].
pub fn parse_config(path: &Path, text: &[u8]) -> Result<HfConfig, ImportError> {
    let json = Json::parse(path, text)?;
    let model_type = json.str("model_type")?.unwrap_or_default();
    let mut tied = json.bool("tie_word_embeddings")?;
    let architecture = match model_type {
        "llava" | "llava_next" if json.has("text_config") || json.has("vision_config") => {
            let text = json.object("text_config")?;
            tied = text.bool("tie_word_embeddings")?.or(tied);
            Architecture::Llava(Box::new(llava(&json, model_type == "llava_next")?))
        }
        "clip_vision_model" => Architecture::Clip(vit(&json)?),
        "siglip_vision_model" => Architecture::Clip(vit(&json)?),
        "clip" => Architecture::Clip(vit(&json.object("vision_config")?)?),
        "siglip" => Architecture::Clip(siglip(&json.object("vision_config")?)?),
        other => {
            let (alone, beneath) = (Family::of_decoder(other), Family::of_llava(other));
            match (alone, beneath) {
                (Some(family), _) => Architecture::Decoder(decoder(&json, family)?),
                (None, Some(family)) => Architecture::Llava(Box::new(original(&json, family)?)),
                (None, None) => {
                    let known = [Family::known_llava(), Family::known()].join(", ");
                    let problem = format!(
                        "known are llava_next, {known}, clip, clip_vision_model, siglip and siglip_vision_model"
                    );
                    return Err(json.refuse("model_type", other, &problem));
                }
            }
        }
    };
    Ok(HfConfig {
        original: matches!(architecture, Architecture::Llava(_)) && !json.has("text_config"),
        image_aspect_ratio: json.str("image_aspect_ratio")?.map(str::to_owned),
        name_or_path: json.str("_name_or_path")?.map(str::to_owned),
        quantised: quantised(&json)?,
        architecture,
        image_token_id: json.int("image_token_id")?.or(json.int("image_token_index")?),
        mm_vision_tower: json.str("mm_vision_tower")?.map(str::to_owned),
        dtype: json.str("dtype")?.or(json.str("torch_dtype")?).map(str::to_owned),
        tied,
    })
}

/// The text half of a CLIP checkpoint's `config.json`.
///
/// # Errors
/// As [`read_config`]; also if the file is no CLIP's.
pub fn read_clip_text_config(path: &Path) -> Result<ClipTextConfig, ImportError> {
    let text = std::fs::read(path).map_err(ImportError::read(path))?;
    let json = Json::parse(path, &text)?;
    let own = match json.str("model_type")?.unwrap_or_default() {
        "clip" => json.object("text_config")?,
        "clip_text_model" => json,
        other => {
            return Err(json.refuse("model_type", other, "known are clip and clip_text_model"));
        }
    };
    let config = ClipTextConfig {
        vocab_size: own.size("vocab_size", 49_408)?,
        hidden_size: own.size("hidden_size", 512)?,
        intermediate_size: own.size("intermediate_size", 2048)?,
        num_hidden_layers: own.size("num_hidden_layers", 12)?,
        num_attention_heads: own.size("num_attention_heads", 8)?,
        max_position_embeddings: own.size("max_position_embeddings", 77)?,
        projection_dim: own.size("projection_dim", 512)?,
        layer_norm_eps: own.float("layer_norm_eps")?.unwrap_or(1e-5),
        hidden_act: hidden_act(&own)?,
        bos_token_id: own.int("bos_token_id")?.unwrap_or(49_406),
        // Configurations before 4.31 say 2; the vocabulary's last id has always been the end.
        eos_token_id: match own.int("eos_token_id")? {
            None | Some(2) => own.size("vocab_size", 49_408)? as i64 - 1,
            Some(id) => id,
        },
    };
    config.validate().map_err(|source| own.invalid(source))?;
    Ok(config)
}

fn hidden_act(json: &Json<'_>) -> Result<HiddenAct, ImportError> {
    match json.str("hidden_act")? {
        None | Some("quick_gelu") => Ok(HiddenAct::QuickGelu),
        Some("gelu") => Ok(HiddenAct::Gelu),
        Some("gelu_pytorch_tanh") => Ok(HiddenAct::GeluPytorchTanh),
        Some(other) => {
            let problem = "known are quick_gelu, gelu and gelu_pytorch_tanh";
            Err(json.refuse("hidden_act", other, problem))
        }
    }
}

/// `LlavaConfig` and `LlavaNextConfig` of transformers.
fn llava(json: &Json<'_>, next: bool) -> Result<LlavaConfig, ImportError> {
    json.require("projector_hidden_act", "gelu", "the projector's activation is GELU")?;
    if json.bool("multimodal_projector_bias")? == Some(false) {
        return Err(json.refuse(
            "multimodal_projector_bias",
            "false",
            "projectors have biases here",
        ));
    }
    let text = json.object("text_config")?;
    let text_type = text.str("model_type")?.unwrap_or("llama");
    let family = Family::of_decoder(text_type).ok_or_else(|| {
        let problem = format!("known decoders are {}", Family::known());
        text.refuse("model_type", text_type, &problem)
    })?;
    let vision = vision(json)?;
    let anyres = if next { Some(anyres(json, &vision)?) } else { None };
    Ok(LlavaConfig {
        text: decoder(&text, family)?,
        vision,
        mm_projector_type: ProjectorType::Mlp2xGelu,
        anyres,
        isolator_length: 0,
        ..LlavaConfig::default()
    })
}

/// The vision tower of `LlavaConfig`, or the one that [`export`](crate::export) writes where transformers knows none.
fn vision(json: &Json<'_>) -> Result<VisionConfig, ImportError> {
    let own = json.object("vision_config")?;
    if own.str("model_type")? == Some(EFFICIENTNET_LITE0) {
        let config = EfficientNetConfig { image_size: own.size("image_size", 384)? };
        config.validate().map_err(|source| own.invalid(source))?;
        return Ok(config.into());
    }
    if let Some(kind) = own.str("model_type")?
        && own.str("kind")? == Some(kind)
    {
        // A tower of another crate, as this crate exports it.
        let fields = own.fields().clone().into_iter().filter(|(name, _)| name != "model_type");
        let read = serde_json::from_value::<CustomVisionConfig>(Value::Object(fields.collect()));
        let config = read.map_err(|error| own.refuse("kind", kind, &error.to_string()))?;
        config.validate().map_err(|source| own.invalid(source))?;
        return Ok(config.into());
    }
    let mut vision = vit(&own)?;
    vision.mm_vision_select_layer = select_layer(json, "vision_feature_layer")?;
    vision.mm_vision_select_feature = match json.str("vision_feature_select_strategy")? {
        // transformers takes the first token away for `default`, whatever it is.
        Some("full") if vision.family == VitFamily::Siglip => SelectFeature::Patch,
        _ if vision.family == VitFamily::Siglip => {
            let problem = "SigLIP's towers have no class token to leave out; say full";
            return Err(json.refuse("vision_feature_select_strategy", "default", problem));
        }
        None | Some("default") => SelectFeature::Patch,
        Some("full") => SelectFeature::ClsPatch,
        Some(other) => {
            let problem = "known are default and full";
            return Err(json.refuse("vision_feature_select_strategy", other, problem));
        }
    };
    Ok(vision.into())
}

/// `config.json` of LLaVA's own code: a decoder's configuration with `mm_*` fields beside it. The vision tower's sizes are
/// not in it: what is returned holds the place of those of its own `config.json`.
fn original(json: &Json<'_>, family: &Family) -> Result<LlavaConfig, ImportError> {
    let mut vision = VitConfig { projection_dim: None, ..VitConfig::clip_vit_l_14_336() };
    vision.mm_vision_select_layer = select_layer(json, "mm_vision_select_layer")?;
    vision.mm_vision_select_feature = match json.str("mm_vision_select_feature")? {
        None | Some("patch") => SelectFeature::Patch,
        Some("cls_patch") => SelectFeature::ClsPatch,
        Some(other) => {
            let problem = "known are patch and cls_patch";
            return Err(json.refuse("mm_vision_select_feature", other, problem));
        }
    };
    let mm_projector_type = match json.str("mm_projector_type")? {
        None | Some("linear") => ProjectorType::Linear,
        Some("mlp2x_gelu") => ProjectorType::Mlp2xGelu,
        Some(other) => {
            let problem = "known are linear and mlp2x_gelu";
            return Err(json.refuse("mm_projector_type", other, problem));
        }
    };
    let vision = VisionConfig::Vit(vision);
    let anyres = match json.str("mm_patch_merge_type")? {
        Some("spatial_unpad") => Some(anyres(json, &vision)?),
        _ => None,
    };
    Ok(LlavaConfig {
        text: decoder(json, family)?,
        vision,
        mm_projector_type,
        anyres,
        isolator_length: 0,
        ..LlavaConfig::default()
    })
}

fn anyres(json: &Json<'_>, vision: &VisionConfig) -> Result<AnyresConfig, ImportError> {
    let side = vision.geometry().image_size;
    let default = [[1, 2], [2, 1], [2, 2], [3, 1], [1, 3]].map(|grid| grid.map(|n| n * side));
    let pinpoints = match json.get("image_grid_pinpoints") {
        None | Some(Value::Null) => default.to_vec(),
        // LLaVA's own code has [width, height] pairs, sometimes as text; its list is symmetric.
        Some(Value::String(text)) => serde_json::from_str(text)
            .map_err(|error| json.refuse("image_grid_pinpoints", text, &error.to_string()))?,
        Some(value) => serde_json::from_value(value.clone()).map_err(|error| {
            json.refuse("image_grid_pinpoints", &value.to_string(), &error.to_string())
        })?,
    };
    Ok(AnyresConfig { image_grid_pinpoints: pinpoints, ..AnyresConfig::default() })
}

fn select_layer(json: &Json<'_>, field: &str) -> Result<i64, ImportError> {
    match json.get(field) {
        Some(Value::Array(layers)) => Err(json.refuse(
            field,
            &format!("{layers:?}"),
            "one layer can be selected, not several",
        )),
        _ => Ok(json.int(field)?.unwrap_or(-2)),
    }
}

/// `CLIPVisionConfig` or `SiglipVisionConfig`.
fn vit(json: &Json<'_>) -> Result<VitConfig, ImportError> {
    match json.str("model_type")? {
        None | Some("clip_vision_model") => clip(json),
        Some("siglip_vision_model") => siglip(json),
        Some(kind) => {
            let problem =
                "vision towers are clip_vision_model, siglip_vision_model and efficientnet_lite0";
            Err(json.refuse("model_type", kind, problem))
        }
    }
}

fn siglip(json: &Json<'_>) -> Result<VitConfig, ImportError> {
    check_channels(json)?;
    json.require("hidden_act", "gelu_pytorch_tanh", "SigLIP's activation is gelu_pytorch_tanh")?;
    let config = VitConfig {
        hidden_size: json.size("hidden_size", 768)?,
        intermediate_size: json.size("intermediate_size", 3072)?,
        num_hidden_layers: json.size("num_hidden_layers", 12)?,
        num_attention_heads: json.size("num_attention_heads", 12)?,
        image_size: json.size("image_size", 224)?,
        patch_size: json.size("patch_size", 16)?,
        layer_norm_eps: json.float("layer_norm_eps")?.unwrap_or(1e-6),
        ..VitConfig::siglip_so400m_14_384()
    };
    config.validate().map_err(|source| json.invalid(source))?;
    Ok(config)
}

fn check_channels(json: &Json<'_>) -> Result<(), ImportError> {
    match json.int("num_channels")? {
        None | Some(3) => Ok(()),
        Some(other) => Err(json.refuse("num_channels", &other.to_string(), "images are RGB here")),
    }
}

fn clip(json: &Json<'_>) -> Result<VitConfig, ImportError> {
    check_channels(json)?;
    let config = VitConfig {
        hidden_size: json.size("hidden_size", 768)?,
        intermediate_size: json.size("intermediate_size", 3072)?,
        num_hidden_layers: json.size("num_hidden_layers", 12)?,
        num_attention_heads: json.size("num_attention_heads", 12)?,
        image_size: json.size("image_size", 224)?,
        patch_size: json.size("patch_size", 32)?,
        layer_norm_eps: json.float("layer_norm_eps")?.unwrap_or(1e-5),
        hidden_act: hidden_act(json)?,
        projection_dim: Some(json.size("projection_dim", 512)?),
        ..VitConfig::clip_vit_l_14_336()
    };
    config.validate().map_err(|source| json.invalid(source))?;
    Ok(config)
}
