//! Groups of parameters: which are trained, each with a learning rate of its own.

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{FloatDType, Tensor};
use dualspeed_ops::Backend;
use serde::{Deserialize, Serialize};

use super::llava::Llava;
use crate::config::Dtype;
use crate::error::ModelError;
use crate::nn::cast;
use crate::nn::params::{ParamInfo, parameters};

/// A group of parameters; learning rates are set per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamGroup {
    /// The vision tower, `vision_tower`.
    VisionTower,
    /// The projector, `mm_projector`.
    Projector,
    /// The embedding that ends a row of patches, `image_newline`; trained with the projector.
    Newline,
    /// The mode isolator, `mode_isolator`.
    Isolator,
    /// The decoder's own weights, `language_model`.
    LanguageModel,
    /// The adapters, `lora`.
    Lora,
}

impl ParamGroup {
    /// Every group, in the model's order.
    pub const ALL: [Self; 6] = [
        Self::VisionTower,
        Self::Projector,
        Self::Newline,
        Self::Isolator,
        Self::LanguageModel,
        Self::Lora,
    ];

    /// The part of the model that the group's parameters belong to: the first name of their paths.
    pub fn root(self) -> &'static str {
        match self {
            Self::VisionTower => "vision_tower",
            Self::Projector => "mm_projector",
            Self::Newline => "image_newline",
            Self::Isolator => "mode_isolator",
            Self::LanguageModel => "language_model",
            Self::Lora => "lora",
        }
    }

    /// The group of a parameter of the model by its dotted path; `None` of what is no part of it.
    pub fn of(path: &str) -> Option<Self> {
        let root = path.split('.').next().unwrap_or_default();
        Self::ALL.into_iter().find(|group| group.root() == root)
    }
}

/// Which parts of the model take gradients.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trainable {
    /// The vision tower.
    pub vision_tower: bool,
    /// The projector, and the newline embedding with it (as in LLaVA-NeXT).
    pub projector: bool,
    /// The mode isolator, if the model has one.
    pub isolator: bool,
    /// The decoder's own weights.
    pub language_model: bool,
    /// The adapters.
    pub lora: bool,
}

impl Default for Trainable {
    fn default() -> Self {
        Self::full()
    }
}

impl Trainable {
    /// Nothing.
    pub const fn nothing() -> Self {
        Self {
            vision_tower: false,
            projector: false,
            isolator: false,
            language_model: false,
            lora: false,
        }
    }

    /// Stage 1: projector and isolator.
    pub const fn pretrain() -> Self {
        Self { projector: true, isolator: true, ..Self::nothing() }
    }

    /// Stage 2 with adapters.
    pub const fn finetune_lora() -> Self {
        Self { lora: true, ..Self::pretrain() }
    }

    /// Everything but the vision tower and adapters: stage 2 in full, or one stage from scratch.
    pub const fn full() -> Self {
        Self { language_model: true, ..Self::pretrain() }
    }

    /// Whether a group is trained.
    pub fn has(&self, group: ParamGroup) -> bool {
        match group {
            ParamGroup::VisionTower => self.vision_tower,
            ParamGroup::Projector | ParamGroup::Newline => self.projector,
            ParamGroup::Isolator => self.isolator,
            ParamGroup::LanguageModel => self.language_model,
            ParamGroup::Lora => self.lora,
        }
    }
}

impl<B: Backend> Llava<B> {
    /// The same model, with exactly these parts taking gradients.
    ///
    /// # Errors
    /// [`ModelError::NoLora`] if adapters are to be trained and the model has none.
    pub fn with_trainable(self, trainable: Trainable) -> Result<Self, ModelError> {
        if trainable.lora && self.lora.is_none() {
            return Err(ModelError::NoLora);
        }
        let frozen = |group| !trainable.has(group);
        Ok(Self {
            vision_tower: self.vision_tower.set_frozen::<B>(frozen(ParamGroup::VisionTower)),
            mm_projector: self.mm_projector.set_frozen::<B>(frozen(ParamGroup::Projector)),
            image_newline: self.image_newline.set_frozen::<B>(frozen(ParamGroup::Newline)),
            mode_isolator: self.mode_isolator.set_frozen::<B>(frozen(ParamGroup::Isolator)),
            language_model: self.language_model.set_frozen::<B>(frozen(ParamGroup::LanguageModel)),
            lora: self.lora.set_frozen::<B>(frozen(ParamGroup::Lora)),
            ..self
        })
    }

    /// The same model with every frozen weight in `config.dtype`, and what is trained in f32.
    ///
    /// # Errors
    /// [`ModelError::Dtype`] if the backend has no such type on this device.
    pub fn store_frozen(self) -> Result<Self, ModelError> {
        let device = self.language_model.embed_tokens.weight.lazy_device();
        require_dtype::<B>(self.config.dtype, &device)?;
        let dtype = self.config.dtype.float();
        Ok(self.map(&mut StoreFrozen(dtype)))
    }

    /// Which parts take gradients now.
    pub fn trainable(&self) -> Trainable {
        Trainable {
            vision_tower: !self.vision_tower.is_frozen(),
            projector: !self.mm_projector.is_frozen(),
            isolator: !self.mode_isolator.is_frozen(),
            language_model: !self.language_model.is_frozen(),
            lora: !self.lora.is_frozen() && self.lora.is_some(),
        }
    }

    /// Every parameter, in the module's order. Initialises no lazy parameter.
    pub fn parameters(&self) -> Vec<ParamInfo> {
        parameters::<B, _>(self, "")
    }
}

/// Checks that weights can be of this type, before any is read.
///
/// # Errors
/// [`ModelError::Dtype`] if the backend has no such type on this device.
pub fn require_dtype<B: Backend>(dtype: Dtype, device: &B::Device) -> Result<(), ModelError> {
    match B::supports_dtype(device, dtype.float().into()) {
        true => Ok(()),
        false => Err(ModelError::Dtype { dtype, backend: B::name(device) }),
    }
}

struct StoreFrozen(FloatDType);

impl<B: Backend> ModuleMapper<B> for StoreFrozen {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let dtype = if param.is_require_grad() { FloatDType::F32 } else { self.0 };
        param.map(|tensor| cast(tensor, dtype))
    }
}
