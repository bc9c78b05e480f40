//! Model configurations: plain serde data, field names as in Hugging Face's `config.json`.

mod anyres;
mod compat;
mod encoder;
mod error;
mod geometry;
mod projector;
mod rope;
mod text;
mod vision;

use burn::tensor::FloatDType;
use serde::{Deserialize, Serialize};

pub use anyres::{AnyresConfig, NewlinePolicy, PositionPolicy};
pub use compat::Compat;
pub use dualspeed_ops::Target as LoraTarget;
pub use encoder::{
    CLIP_VIT, CustomVisionConfig, EFFICIENTNET_LITE0, EfficientNetConfig, VisionConfig,
};
pub use error::ModelConfigError;
pub use geometry::VisionGeometry;
pub use projector::{CustomProjectorConfig, ProjectorType};
pub use rope::RopeScaling;
pub use text::{DecoderConfig, LoraConfig};
pub use vision::{HiddenAct, SelectFeature, VitConfig, VitFamily};

/// The type of frozen weights and activations; what is trained stays in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits.
    #[default]
    Float32,
    /// 16 bits with the range of f32.
    BFloat16,
    /// 16 bits, IEEE.
    Float16,
}

impl Dtype {
    /// Burn's name of it.
    pub fn float(self) -> FloatDType {
        match self {
            Self::Float32 => FloatDType::F32,
            Self::BFloat16 => FloatDType::BF16,
            Self::Float16 => FloatDType::F16,
        }
    }

    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::Float32 => 4,
            Self::BFloat16 | Self::Float16 => 2,
        }
    }
}

/// A LLaVA-family model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LlavaConfig {
    /// The vision tower.
    pub vision: VisionConfig,
    /// The language model.
    pub text: DecoderConfig,
    /// The projector.
    pub mm_projector_type: ProjectorType,
    /// Tiles of images of any resolution (LLaVA-NeXT); without it an image is one tile.
    pub anyres: Option<AnyresConfig>,
    /// Rotary positions after pruning.
    pub visual_positions: PositionPolicy,
    /// The type of frozen weights and activations.
    pub dtype: Dtype,
    /// Length l of the mode isolator; 0 means none, left out: 4 as published.
    pub isolator_length: usize,
    /// Low-rank adapters on the language model.
    pub lora: Option<LoraConfig>,
    /// Longest sequence with its visual tokens in place; longer ones are cut, never inside an image.
    pub max_length: Option<usize>,
    /// Sequence lengths are padded to a multiple of this; 0 or 1 means no padding beyond the batch.
    pub pad_to_multiple: usize,
}

impl Default for LlavaConfig {
    /// The quickstart's model, with the published isolator.
    fn default() -> Self {
        Self {
            vision: VisionConfig::default(),
            text: DecoderConfig::default(),
            mm_projector_type: ProjectorType::default(),
            anyres: None,
            visual_positions: PositionPolicy::default(),
            dtype: Dtype::default(),
            isolator_length: 4,
            lora: None,
            max_length: None,
            pad_to_multiple: 0,
        }
    }
}

impl LlavaConfig {
    /// Checks that the model can be built.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        self.vision.validate()?;
        self.text.validate()?;
        if let Some(lora) = &self.lora {
            lora.validate()?;
        }
        if let Some(anyres) = &self.anyres {
            anyres.validate(self.vision.geometry().image_size)?;
        }
        self.mm_projector_type.validate(self.vision.geometry().grid)?;
        if self.max_length == Some(0) {
            return Err(ModelConfigError::Zero { field: "max_length" });
        }
        Ok(())
    }

    /// Visual tokens of an image (or tile) before pruning, as the language model sees them.
    pub fn num_visual_tokens(&self) -> usize {
        match &self.mm_projector_type {
            ProjectorType::Custom(_) => self.visual_grid() * self.visual_grid(),
            _ => self.vision.geometry().num_tokens,
        }
    }

    /// Visual tokens along a side of an image (or tile), as the language model sees them.
    pub fn visual_grid(&self) -> usize {
        self.vision.geometry().grid / self.mm_projector_type.merge()
    }

    /// LLaVA-1.5-7B: CLIP ViT-L/14 at 336 pixels, Vicuna-7B, isolator of length 4.
    pub fn llava_1_5_7b() -> Self {
        Self {
            vision: VitConfig::clip_vit_l_14_336().into(),
            text: DecoderConfig::vicuna_7b(),
            max_length: Some(2048),
            pad_to_multiple: 8,
            ..Self::default()
        }
    }
}

pub(crate) fn nonzero(fields: &[(&'static str, usize)]) -> Result<(), ModelConfigError> {
    match fields.iter().find(|(_, value)| *value == 0) {
        Some((field, _)) => Err(ModelConfigError::Zero { field }),
        None => Ok(()),
    }
}

pub(crate) fn divisible(
    (field, value): (&'static str, usize),
    (by, divisor): (&'static str, usize),
) -> Result<(), ModelConfigError> {
    if value.is_multiple_of(divisor) {
        Ok(())
    } else {
        Err(ModelConfigError::NotDivisible { field, value, by, divisor })
    }
}
