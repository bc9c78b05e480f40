//! The text half of a CLIP checkpoint.

use dualspeed_ops::Backend;

use super::error::ImportError;
use super::fill::fill_part;
use super::names::Canonical;
use super::source::WeightSource;
use super::tensor::FloatType;
use crate::nn::Init;
use crate::vision::clip_text::{ClipText, ClipTextConfig};

/// Reads the text half of a CLIP checkpoint, whole or by itself; the vision half is left alone.
///
/// # Errors
/// [`ImportError`] if a tensor is missing, left over, or of another shape.
pub fn read_clip_text<B: Backend>(
    config: &ClipTextConfig,
    source: Box<dyn WeightSource>,
    dtype: Option<FloatType>,
    device: &B::Device,
) -> Result<ClipText<B>, ImportError> {
    let path = source.path().to_owned();
    config.validate().map_err(|source| ImportError::Invalid { path, source })?;
    let own = Canonical::with(source, |key| {
        if key.ends_with("position_ids") {
            return None;
        }
        let own = key
            .strip_prefix("text_model.")
            .or_else(|| key.starts_with("text_projection.").then_some(key))?;
        Some(format!("clip_text.{own}"))
    })?;
    let model = config.init::<B>(&Init::new(0, device).at("clip_text").frozen());
    fill_part(model, "clip_text", &own, dtype)
}
