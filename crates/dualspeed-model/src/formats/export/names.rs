//! Paths in our model to names in checkpoints: the inverse of [`import::names`](crate::formats::import::names).

/// Whose names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `LlavaForConditionalGeneration` as published: `language_model.model.layers.0…`.
    Transformers,
    /// LLaVA's own code: `model.layers.0…`, `model.mm_projector.0…`.
    Original,
}

/// The key of a parameter; `None` for what the layout has no place for: the isolator and the tower's projection into the
/// space shared with text.
pub fn key_of(path: &str, layout: Layout) -> Option<String> {
    if path.starts_with("mode_isolator") || path.starts_with("vision_tower.visual_projection") {
        return None;
    }
    let transformers = [
        ("vision_tower.", "vision_tower.vision_model."),
        ("mm_projector.", "multi_modal_projector."),
        ("language_model.lm_head.", "language_model.lm_head."),
        ("language_model.", "language_model.model."),
    ];
    let original = [
        ("mm_projector.linear_1.", "model.mm_projector.0."),
        ("mm_projector.linear_2.", "model.mm_projector.2."),
        ("image_newline", "model.image_newline"),
        ("language_model.lm_head.", "lm_head."),
        ("language_model.", "model."),
    ];
    let table: &[(&str, &str)] = match layout {
        Layout::Transformers => &transformers,
        // The tower has a directory of its own.
        Layout::Original if path.starts_with("vision_tower.") => return None,
        Layout::Original => &original,
    };
    let renamed = table.iter().find_map(|(from, to)| {
        let rest = path.strip_prefix(from)?;
        Some(format!("{to}{rest}"))
    });
    Some(renamed.unwrap_or_else(|| path.to_owned()))
}

/// The key of a vision tower's parameter in its own checkpoint.
pub fn tower_key(path: &str) -> Option<String> {
    let rest = path.strip_prefix("vision_tower.")?;
    (!rest.starts_with("visual_projection")).then(|| format!("vision_model.{rest}"))
}

/// The key of a parameter in the files of LLaVA's stage 1; `None` for what they have not.
pub fn stage1_key(path: &str) -> Option<String> {
    match path {
        "mode_isolator" => Some("weight".to_owned()),
        _ if path.starts_with("mm_projector.") => key_of(path, Layout::Original),
        _ => None,
    }
}

/// PEFT's key of a part of an adapter, over transformers' module names.
pub fn peft_key(path: &str) -> Option<String> {
    const MODEL: &str = "base_model.model.model";
    if let Some(rest) = path.strip_prefix("mm_projector.") {
        return Some(format!("{MODEL}.multi_modal_projector.{rest}"));
    }
    let rest = path.strip_prefix("lora.layers.")?;
    let (layer, rest) = rest.split_once('.')?;
    let (target, factor) = rest.split_once('.')?;
    let block =
        if matches!(target, "gate_proj" | "up_proj" | "down_proj") { "mlp" } else { "self_attn" };
    let factor = if factor == "lora_a" { "lora_A" } else { "lora_B" };
    Some(format!("{MODEL}.language_model.layers.{layer}.{block}.{target}.{factor}.weight"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::import::names::path_of;

    #[test]
    fn keys_lead_back_to_their_paths() {
        let paths = [
            "vision_tower.encoder.layers.2.self_attn.out_proj.bias",
            "mm_projector.linear_1.weight",
            "mm_projector.linear_2.bias",
            "image_newline",
            "language_model.layers.0.mlp.gate_proj.weight",
            "language_model.norm.weight",
            "language_model.embed_tokens.weight",
            "language_model.lm_head.weight",
        ];
        for path in paths {
            for layout in [Layout::Transformers, Layout::Original] {
                if let Some(key) = key_of(path, layout) {
                    assert_eq!(path_of(&key).as_deref(), Some(path), "{key}");
                }
            }
        }
        let tower = tower_key(paths[0]).and_then(|key| path_of(&key));
        assert_eq!(tower.as_deref(), Some(paths[0]));
    }
}
