//! Architectures in words.

use dualspeed_model::{DecoderConfig, LlavaConfig, VisionConfig, VitConfig};

/// The parts of a model with vision, a line each.
pub(super) fn describe_llava(config: &LlavaConfig) -> String {
    let tiles = match &config.anyres {
        Some(anyres) => format!(", up to {} grids of tiles", anyres.image_grid_pinpoints.len()),
        None => String::new(),
    };
    let isolator = match config.isolator_length {
        0 => "none".to_owned(),
        length => format!("{length} tokens"),
    };
    format!(
        "LLaVA{tiles}\n  vision    {}\n  projector {:?}\n  isolator  {isolator}\n  language  {}",
        match &config.vision {
            VisionConfig::Vit(config) => describe_vit(config),
            VisionConfig::EfficientNet(_) => format!(
                "EfficientNet-Lite0, block 10, width {}, {} px, {} tokens",
                config.vision.geometry().hidden_size,
                config.vision.geometry().image_size,
                config.num_visual_tokens()
            ),
            VisionConfig::Custom(vision) => format!(
                "{}, width {}, {} px, {} tokens",
                vision.kind,
                vision.hidden_size,
                vision.image_size,
                config.num_visual_tokens()
            ),
        },
        config.mm_projector_type,
        describe_llama(&config.text)
    )
}

/// A CLIP vision tower in a line.
pub(super) fn describe_vit(config: &VitConfig) -> String {
    format!(
        "CLIP ViT, {} layers, width {}, {} heads, {} px, {} tokens",
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.image_size,
        config.num_tokens()
    )
}

/// A decoder in a line.
pub(super) fn describe_llama(config: &DecoderConfig) -> String {
    format!(
        "Llama, {} layers, width {}, {} heads ({} for keys, {} wide), MLP {}, vocabulary {}, RoPE base {}{}{}",
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.kv_heads(),
        config.head_size(),
        config.intermediate_size,
        config.vocab_size,
        config.rope_theta,
        config.rope_scaling.map_or_else(String::new, |scaling| format!(" scaled ({scaling:?})")),
        if config.tie_word_embeddings { ", tied head" } else { "" }
    )
}
