//! The decoder in a `config.json`: families as rows of a table, read into one configuration.

use serde_json::{Value, json};

use super::error::ImportError;
use super::json::Json;
use crate::config::{DecoderConfig, RopeScaling};

/// A family of decoders: what its configuration's class in transformers defaults to, and the flags its name stands for.
#[derive(Clone, Copy)]
pub(super) struct Family {
    /// `model_type` of the decoder.
    model_type: &'static str,
    /// `model_type` of LLaVA's own code over it.
    llava: &'static [&'static str],
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    intermediate_size: usize,
    vocab_size: usize,
    /// `None`: as many as query heads.
    num_key_value_heads: Option<usize>,
    /// `None`: `hidden_size / num_attention_heads`.
    head_dim: Option<usize>,
    max_position_embeddings: i64,
    sliding_window: SlidingWindow,
    qkv_bias: bool,
    qk_norm: bool,
    /// Every so many layers one does not turn with positions, unless the file lists `no_rope_layers`.
    no_rope_layer_interval: Option<usize>,
    rope_theta: f64,
    tie_word_embeddings: bool,
}

/// Whether attention reaches back `sliding_window` positions only; the number is for files that have none.
#[derive(Clone, Copy)]
enum SlidingWindow {
    Never,
    Always(i64),
    /// Where the file has `use_sliding_window`.
    IfAsked(Option<i64>),
}

/// `LlamaConfig`.
const LLAMA: Family = Family {
    model_type: "llama",
    llava: &["llava", "llava_llama"],
    hidden_size: 4096,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    intermediate_size: 11_008,
    vocab_size: 32_000,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    sliding_window: SlidingWindow::Never,
    qkv_bias: false,
    qk_norm: false,
    no_rope_layer_interval: None,
    rope_theta: 10_000.0,
    tie_word_embeddings: false,
};

/// `MistralConfig`.
const MISTRAL: Family = Family {
    model_type: "mistral",
    llava: &["llava_mistral"],
    intermediate_size: 14_336,
    num_key_value_heads: Some(8),
    max_position_embeddings: 131_072,
    sliding_window: SlidingWindow::Always(4096),
    ..LLAMA
};

/// `Qwen2Config`.
const QWEN2: Family = Family {
    model_type: "qwen2",
    llava: &["llava_qwen", "llava_qwen2"],
    intermediate_size: 22_016,
    vocab_size: 151_936,
    num_key_value_heads: Some(32),
    max_position_embeddings: 32_768,
    sliding_window: SlidingWindow::IfAsked(Some(4096)),
    qkv_bias: true,
    ..LLAMA
};

/// `Qwen3Config`.
const QWEN3: Family = Family {
    model_type: "qwen3",
    llava: &["llava_qwen3"],
    head_dim: Some(128),
    qkv_bias: false,
    qk_norm: true,
    ..QWEN2
};

/// `SmolLM3Config`.
const SMOLLM3: Family = Family {
    model_type: "smollm3",
    llava: &[],
    hidden_size: 2048,
    num_hidden_layers: 36,
    num_attention_heads: 16,
    vocab_size: 128_256,
    num_key_value_heads: Some(4),
    max_position_embeddings: 32_768,
    sliding_window: SlidingWindow::IfAsked(None),
    no_rope_layer_interval: Some(4),
    rope_theta: 2_000_000.0,
    tie_word_embeddings: true,
    ..LLAMA
};

const FAMILIES: [Family; 5] = [LLAMA, MISTRAL, QWEN2, QWEN3, SMOLLM3];

impl Family {
    /// The family of a decoder's `model_type`.
    pub(super) fn of_decoder(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.model_type == model_type)
    }

    /// The family of the decoder in a model of LLaVA's own code, by the whole model's `model_type`.
    pub(super) fn of_llava(model_type: &str) -> Option<&'static Self> {
        FAMILIES.iter().find(|family| family.llava.contains(&model_type))
    }

    /// Names of all families, for messages.
    pub(super) fn known() -> String {
        FAMILIES.map(|family| family.model_type).join(", ")
    }

    /// Names of all models of LLaVA's own code, for messages.
    pub(super) fn known_llava() -> String {
        FAMILIES.iter().flat_map(|family| family.llava).copied().collect::<Vec<_>>().join(", ")
    }

    /// Refuses attention over fewer positions than there are.
    fn check_attention(&self, json: &Json<'_>) -> Result<(), ImportError> {
        let asked = json.bool("use_sliding_window")? == Some(true);
        let default = match self.sliding_window {
            SlidingWindow::Always(window) => Some(Some(window)),
            SlidingWindow::IfAsked(window) if asked => Some(window),
            SlidingWindow::Never | SlidingWindow::IfAsked(_) => None,
        };
        let window = match (default, json.get("sliding_window")) {
            (None, _) => None,
            (Some(default), None) => default,
            (Some(_), Some(_)) => json.int("sliding_window")?,
        };
        let positions = json.int("max_position_embeddings")?;
        let positions = positions.unwrap_or(self.max_position_embeddings);
        if let Some(window) = window.filter(|window| *window < positions) {
            let problem = "attention is over all positions here; a model with a sliding window shorter than its \
                           max_position_embeddings would give other results";
            return Err(json.refuse("sliding_window", &window.to_string(), problem));
        }
        let Some(Value::Array(kinds)) = json.get("layer_types") else { return Ok(()) };
        let full = |kind: &Value| match kind.as_str() {
            Some("full_attention") => true,
            // A window that is no shorter than the positions hides nothing.
            Some("sliding_attention") => window.is_some(),
            _ => false,
        };
        match kinds.iter().find(|kind| !full(kind)) {
            Some(kind) => Err(json.refuse(
                "layer_types",
                &kind.to_string(),
                "attention is over all positions here, full_attention",
            )),
            None => Ok(()),
        }
    }
}

impl Family {
    /// Layers without rotation, of the `layers` that there are: those that `no_rope_layers` has a 0 for (sic), else every
    /// `no_rope_layer_interval`-th.
    fn nope_layers(&self, json: &Json<'_>, layers: usize) -> Result<Vec<usize>, ImportError> {
        let Some(interval) = self.no_rope_layer_interval else { return Ok(Vec::new()) };
        let Some(Value::Array(rotates)) = json.get("no_rope_layers") else {
            let interval = json.size("no_rope_layer_interval", interval)?.max(1);
            return Ok((0..layers).filter(|layer| (layer + 1).is_multiple_of(interval)).collect());
        };
        if rotates.len() < layers
            || !rotates.iter().all(|flag| matches!(flag.as_u64(), Some(0 | 1)))
        {
            let problem = format!(
                "expected {layers} numbers, 1 for a layer that rotates, 0 for one that does not"
            );
            return Err(json.refuse("no_rope_layers", &json!(rotates).to_string(), &problem));
        }
        Ok((0..layers).filter(|layer| rotates[*layer].as_u64() == Some(0)).collect())
    }
}

/// The configuration of a decoder of this family.
pub(super) fn decoder(json: &Json<'_>, family: &Family) -> Result<DecoderConfig, ImportError> {
    json.require("hidden_act", "silu", "the decoder's activation is SiLU")?;
    for field in ["attention_bias", "mlp_bias"] {
        if json.bool(field)? == Some(true) {
            let problem = "decoders have no biases here but Qwen2's of q, k and v";
            return Err(json.refuse(field, "true", problem));
        }
    }
    family.check_attention(json)?;
    let rope = match json.get("rope_parameters") {
        Some(Value::Object(_)) => json.object("rope_parameters")?,
        _ => json.object("rope_scaling")?,
    };
    for place in [&rope, json] {
        if let Some(factor) = place.float("partial_rotary_factor")?.filter(|factor| *factor != 1.0)
        {
            let problem = "heads turn as a whole here";
            return Err(place.refuse("partial_rotary_factor", &factor.to_string(), problem));
        }
    }
    let theta =
        rope.float("rope_theta")?.or(json.float("rope_theta")?).unwrap_or(family.rope_theta);
    let kv_heads = match json.get("num_key_value_heads") {
        None => family.num_key_value_heads,
        _ => json.optional_size("num_key_value_heads")?,
    };
    let layers = json.size("num_hidden_layers", family.num_hidden_layers)?;
    let config = DecoderConfig {
        hidden_size: json.size("hidden_size", family.hidden_size)?,
        num_hidden_layers: layers,
        num_attention_heads: json.size("num_attention_heads", family.num_attention_heads)?,
        num_key_value_heads: kv_heads,
        head_dim: json.optional_size("head_dim")?.or(family.head_dim),
        intermediate_size: json.size("intermediate_size", family.intermediate_size)?,
        vocab_size: json.size("vocab_size", family.vocab_size)?,
        max_position_embeddings: match json.optional_size("max_position_embeddings")? {
            None => usize::try_from(family.max_position_embeddings).ok(),
            found => found,
        },
        qkv_bias: family.qkv_bias,
        qk_norm: family.qk_norm,
        mrope_section: None,
        nope_layers: family.nope_layers(json, layers)?,
        rope_theta: theta,
        rope_scaling: rope_scaling(&rope)?,
        rms_norm_eps: json.float("rms_norm_eps")?.unwrap_or(1e-6),
        tie_word_embeddings: json
            .bool("tie_word_embeddings")?
            .unwrap_or(family.tie_word_embeddings),
        initializer_range: Some(json.float("initializer_range")?.unwrap_or(0.02)),
    };
    config.validate().map_err(|source| json.invalid(source))?;
    Ok(config)
}

fn rope_scaling(rope: &Json<'_>) -> Result<Option<RopeScaling>, ImportError> {
    let kind = rope.str("rope_type")?.or(rope.str("type")?).unwrap_or("default");
    let factor = || {
        let missing = || rope.refuse("factor", "absent", "this kind of rope_scaling needs it");
        rope.float("factor")?.ok_or_else(missing)
    };
    Ok(match kind {
        "default" => None,
        "linear" => Some(RopeScaling::Linear { factor: factor()? }),
        "llama3" => Some(RopeScaling::Llama3 {
            factor: factor()?,
            low_freq_factor: rope.float("low_freq_factor")?.unwrap_or(1.0),
            high_freq_factor: rope.float("high_freq_factor")?.unwrap_or(4.0),
            original_max_position_embeddings: rope
                .size("original_max_position_embeddings", 8192)?,
        }),
        other => {
            return Err(rope.refuse("rope_type", other, "known are default, linear and llama3"));
        }
    })
}
