//! Models that generate text.

use dualspeed_model::{Decoder, DecoderConfig, Llava, LlavaConfig};
use dualspeed_ops::Backend;

/// A model that generates text: with vision, or a decoder alone.
#[derive(Debug)]
pub enum GenerativeModel<B: Backend> {
    /// Vision tower, projector and decoder.
    Llava(Box<Llava<B>>),
    /// A decoder alone.
    Decoder(Box<Decoder<B>>),
}

impl<B: Backend> GenerativeModel<B> {
    /// The configuration of the decoder.
    pub fn text_config(&self) -> &DecoderConfig {
        match self {
            Self::Llava(model) => &model.config.text,
            Self::Decoder(model) => &model.config,
        }
    }

    /// The configuration of the whole model; `None` for a decoder alone.
    pub fn llava_config(&self) -> Option<&LlavaConfig> {
        match self {
            Self::Llava(model) => Some(&model.config),
            Self::Decoder(_) => None,
        }
    }
}
