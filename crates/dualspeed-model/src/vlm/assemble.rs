//! A new model from a vision tower and a language model that were trained apart: where stage 1 begins.

use dualspeed_ops::Backend;

use super::llava::Llava;
use crate::config::{LlavaConfig, ProjectorType};
use crate::error::ModelError;
use crate::language::Decoder;
use crate::nn::Freezable;
use crate::vision::Tower;

/// Puts a fresh projector, a function of the seed alone, between a vision tower and a decoder. There is no isolator yet;
/// [`Llava::with_isolator_length`] makes one.
///
/// # Errors
/// [`ModelError::Config`] if one of their configurations is invalid.
pub fn assemble<B: Backend>(
    tower: Tower<B>,
    language_model: Decoder<B>,
    projector: ProjectorType,
    device: &B::Device,
    seed: u64,
) -> Result<Llava<B>, ModelError> {
    let config = LlavaConfig {
        vision: tower.config(),
        text: language_model.config.clone(),
        mm_projector_type: projector,
        isolator_length: 0,
        ..LlavaConfig::default()
    };
    // Parameters are lazy: those replaced here are never made.
    let fresh = config.init::<B>(device, seed)?;
    Ok(Llava {
        vision_tower: Freezable::frozen::<B>(tower),
        language_model: Freezable::new(language_model),
        ..fresh
    })
}
