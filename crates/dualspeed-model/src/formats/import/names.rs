//! Names in checkpoints to paths in our model.
//!
//! | checkpoint | key | path here |
//! |---|---|---|
//! | LLaVA, transformers up to 4.51 | `language_model.model.layers.0…`, `vision_tower.vision_model…`, `multi_modal_projector…` | `language_model.layers.0…`, `vision_tower…`, `mm_projector…` |
//! | LLaVA, transformers from 4.52 | `model.language_model.layers.0…`, `model.vision_tower…`, `lm_head` | the same |
//! | LLaVA's own code | `model.layers.0…`, `model.vision_tower.vision_tower.vision_model…`, `model.mm_projector.0/2…` | the same |
//! | Llama, Vicuna, Mistral | `model.layers.0…`, `lm_head.weight` | `language_model…` |
//! | CLIP | `vision_model…`, `visual_projection.weight` | `vision_tower…` |
//!
//! The path is where the module keeps the parameter, so what follows the prefix needs no table.

use std::collections::BTreeMap;
use std::path::Path;

use super::error::ImportError;
use super::source::{TensorInfo, WeightSource};
use super::tensor::HostTensor;

/// Prefixes and what they become; the first that matches counts, so longer ones stand first.
const PREFIXES: &[(&str, &str)] = &[
    // LLaVA's own code
    ("model.vision_tower.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.vision_tower.", "vision_tower."),
    ("model.mm_projector.0.", "mm_projector.linear_1."),
    ("model.mm_projector.2.", "mm_projector.linear_2."),
    ("model.mm_projector.", "mm_projector.linear_1."),
    ("mm_projector.0.", "mm_projector.linear_1."),
    ("mm_projector.2.", "mm_projector.linear_2."),
    ("mm_projector.linear_", "mm_projector.linear_"),
    ("mode_isolator.weight", "mode_isolator"),
    // transformers
    ("model.vision_tower.vision_model.", "vision_tower."),
    ("model.vision_tower.", "vision_tower."),
    ("vision_tower.vision_model.", "vision_tower."),
    ("vision_tower.", "vision_tower."),
    ("model.multi_modal_projector.", "mm_projector."),
    ("multi_modal_projector.", "mm_projector."),
    ("model.image_newline", "image_newline"),
    ("image_newline", "image_newline"),
    ("model.language_model.", "language_model."),
    ("language_model.model.", "language_model."),
    ("language_model.lm_head.", "language_model.lm_head."),
    ("language_model.", "language_model."),
    ("lm_head.", "language_model.lm_head."),
    // CLIP
    ("vision_model.", "vision_tower."),
    ("visual_projection.", "vision_tower.visual_projection."),
    ("embeddings.", "vision_tower.embeddings."),
    ("pre_layrnorm.", "vision_tower.pre_layrnorm."),
    ("post_layernorm.", "vision_tower.post_layernorm."),
    ("encoder.layers.", "vision_tower.encoder.layers."),
    // Llama
    ("model.", "language_model."),
    ("layers.", "language_model.layers."),
    ("embed_tokens.", "language_model.embed_tokens."),
    ("norm.", "language_model.norm."),
];

/// Buffers that old versions saved and that follow from the configuration.
const BUFFERS: &[&str] = &["embeddings.position_ids", "rotary_emb.inv_freq"];

/// The half of a whole CLIP or SigLIP model that sees no pixels, its temperature and its bias.
const CLIP_TEXT: &[&str] = &["text_model.", "text_projection.", "logit_scale", "logit_bias"];

/// SigLIP's pooling, whose output is no token.
const SIGLIP_HEAD: &[&str] = &["head.attention.", "head.layernorm.", "head.mlp.", "head.probe"];

/// The path in our model of a checkpoint's key; `None` for buffers, for SigLIP's pooling and for CLIP's text half, which
/// [`read_clip_text`](super::read_clip_text) reads.
pub fn path_of(key: &str) -> Option<String> {
    if BUFFERS.iter().any(|buffer| key.ends_with(buffer))
        || CLIP_TEXT.iter().any(|prefix| key.starts_with(prefix))
    {
        return None;
    }
    let renamed = PREFIXES.iter().find_map(|(from, to)| {
        let rest = key.strip_prefix(from)?;
        Some(format!("{to}{rest}"))
    });
    let path = renamed.unwrap_or_else(|| key.to_owned());
    let of_tower = path.strip_prefix("vision_tower.").unwrap_or(&path);
    let pooling = SIGLIP_HEAD.iter().any(|part| of_tower.starts_with(part));
    (!pooling).then_some(path)
}

/// A source whose tensors go by their path in our model.
pub struct Canonical {
    inner: Box<dyn WeightSource>,
    infos: BTreeMap<String, TensorInfo>,
}

impl Canonical {
    /// Renames with [`path_of`].
    ///
    /// # Errors
    /// If two keys mean the same parameter.
    pub fn new(inner: Box<dyn WeightSource>) -> Result<Self, ImportError> {
        Self::with(inner, path_of)
    }

    /// Renames with another rule; keys it gives `None` for are left out.
    ///
    /// # Errors
    /// If two keys mean the same parameter.
    pub fn with(
        inner: Box<dyn WeightSource>,
        path_of: impl Fn(&str) -> Option<String>,
    ) -> Result<Self, ImportError> {
        let mut infos: BTreeMap<String, TensorInfo> = BTreeMap::new();
        for (key, info) in inner.tensors() {
            let Some(path) = path_of(key) else { continue };
            if let Some(other) = infos.insert(path.clone(), info.clone()) {
                let problem =
                    format!("it and `{}` both mean the parameter {path}; remove one", other.key);
                return Err(ImportError::tensor(&info.path, key, problem));
            }
        }
        Ok(Self { inner, infos })
    }

    fn key(&self, path: &str) -> Result<&str, ImportError> {
        let missing = || ImportError::tensor(self.inner.path(), path, "there is no such tensor");
        self.infos.get(path).map(|info| info.key.as_str()).ok_or_else(missing)
    }
}

impl WeightSource for Canonical {
    fn path(&self) -> &Path {
        self.inner.path()
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn read(&self, path: &str) -> Result<HostTensor, ImportError> {
        self.inner.read(self.key(path)?)
    }

    fn read_transposed(&self, path: &str) -> Result<HostTensor, ImportError> {
        self.inner.read_transposed(self.key(path)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_leads_to_the_same_paths() {
        let same = [
            (
                "language_model.model.layers.3.mlp.up_proj.weight",
                "model.layers.3.mlp.up_proj.weight",
            ),
            ("language_model.lm_head.weight", "lm_head.weight"),
            ("language_model.model.norm.weight", "model.language_model.norm.weight"),
            (
                "vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
                "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc1.bias",
            ),
            ("vision_model.pre_layrnorm.weight", "model.vision_tower.pre_layrnorm.weight"),
            ("multi_modal_projector.linear_2.bias", "model.mm_projector.2.bias"),
            ("multi_modal_projector.linear_1.weight", "mm_projector.0.weight"),
            ("image_newline", "model.image_newline"),
        ];
        for (a, b) in same {
            assert_eq!(path_of(a), path_of(b), "{a} and {b}");
        }
        assert_eq!(path_of("vision_model.embeddings.position_ids"), None);
        assert_eq!(path_of("model.layers.0.self_attn.rotary_emb.inv_freq"), None);
    }
}
