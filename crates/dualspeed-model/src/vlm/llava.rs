//! The whole model: its parts, and how it is built and rebuilt.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use dualspeed_ops::Backend;

use super::parts::Parts;
use crate::config::{LlavaConfig, LoraConfig};
use crate::error::ModelError;
use crate::language::Decoder;
use crate::nn::lora::Lora;
use crate::nn::{Freezable, Init};
use crate::projector::Projector;
use crate::vision::{Tower, VisionTower};

/// A LLaVA-family model with a mode isolator and, by option, low-rank adapters.
#[derive(Module, Debug)]
pub struct Llava<B: Backend> {
    /// The vision tower; frozen unless it is asked to be trained.
    pub vision_tower: Freezable<Tower<B>>,
    /// From vision features to the embedding space.
    pub mm_projector: Freezable<Projector<B>>,
    /// Ends each row of patches of an image of several tiles, `[d]`.
    pub image_newline: Freezable<Option<Param<Tensor<B, 1>>>>,
    /// The soft prompt M `[l, d]` put before pruned visual tokens.
    pub mode_isolator: Freezable<Option<Param<Tensor<B, 2>>>>,
    /// The decoder.
    pub language_model: Freezable<Decoder<B>>,
    /// Low-rank adapters on the decoder.
    pub lora: Freezable<Option<Lora<B>>>,
    /// The configuration this was built from.
    pub config: LlavaConfig,
}

impl LlavaConfig {
    /// Builds the model with weights that are a function of the seed alone.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration is invalid, or names a tower or projector of another crate.
    pub fn init<B: Backend>(&self, device: &B::Device, seed: u64) -> Result<Llava<B>, ModelError> {
        self.init_with(&Parts::default(), device, seed)
    }

    /// [`LlavaConfig::init`] with vision towers and projectors of other crates.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration is invalid, or names a part that is not there.
    pub fn init_with<B: Backend>(
        &self,
        parts: &Parts,
        device: &B::Device,
        seed: u64,
    ) -> Result<Llava<B>, ModelError> {
        self.validate()?;
        let init = Init::new(seed, device);
        let d = self.text.hidden_size;
        let isolator = isolator(&init, self.isolator_length, d);
        let newline = self
            .anyres
            .is_some()
            .then(|| init.at("image_newline").normal([d], (d as f64).powf(-0.5)));
        let tower = self.vision.init(&init.at("vision_tower").frozen(), &parts.towers)?;
        let projector = Projector::init(
            &init.at("mm_projector"),
            &self.mm_projector_type,
            &self.vision.geometry(),
            d,
            &parts.projectors,
        )?;
        let model = Llava {
            vision_tower: Freezable::frozen::<B>(tower),
            mm_projector: Freezable::new(projector),
            image_newline: Freezable::new(newline),
            mode_isolator: Freezable::new(isolator),
            language_model: Freezable::new(self.text.init(&init.at("language_model"))),
            lora: Freezable::new(None),
            config: self.clone(),
        };
        Ok(match &self.lora {
            Some(lora) => model.with_lora(lora, device, seed)?,
            None => model,
        })
    }
}

/// Source: the published code's init of the soft prompt, U(-1/sqrt(d), 1/sqrt(d)).
fn isolator<B: Backend>(init: &Init<'_, B>, l: usize, d: usize) -> Option<Param<Tensor<B, 2>>> {
    (l > 0).then(|| init.at("mode_isolator").uniform([l, d], (d as f64).powf(-0.5)))
}

impl<B: Backend> Llava<B> {
    /// The same model with a fresh mode isolator of another length; 0 takes it away.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the configuration is then invalid.
    pub fn with_isolator_length(
        mut self,
        length: usize,
        device: &B::Device,
        seed: u64,
    ) -> Result<Self, ModelError> {
        self.config.isolator_length = length;
        self.config.validate()?;
        let fresh = isolator(&Init::new(seed, device), length, self.config.text.hidden_size);
        self.mode_isolator = Freezable::new(fresh);
        Ok(self)
    }

    /// The same model with another vision tower, which is frozen.
    ///
    /// # Errors
    /// [`ModelError::FeatureShape`] if its features do not fit the projector.
    pub fn with_vision_tower(mut self, tower: impl Into<Tower<B>>) -> Result<Self, ModelError> {
        let tower = tower.into();
        let (own, other) = (self.config.vision.geometry(), tower.geometry());
        let (tokens, hidden) = (own.num_tokens, own.hidden_size);
        if (other.num_tokens, other.hidden_size) != (tokens, hidden) {
            let found = vec![other.num_tokens, other.hidden_size];
            return Err(ModelError::FeatureShape { found, tokens, hidden });
        }
        self.config.vision = tower.config();
        self.vision_tower = Freezable::frozen::<B>(tower);
        Ok(self)
    }

    /// The same model with fresh low-rank adapters, which change nothing until they are trained.
    ///
    /// # Errors
    /// [`ModelError::Config`] if the adapter configuration is invalid.
    pub fn with_lora(
        mut self,
        config: &LoraConfig,
        device: &B::Device,
        seed: u64,
    ) -> Result<Self, ModelError> {
        config.validate()?;
        let init = Init::new(seed, device).at("lora");
        self.lora = Freezable::new(Some(Lora::init(&init, config, &self.config.text)));
        self.config.lora = Some(config.clone());
        Ok(self)
    }

    /// The same model with another share of dropout in its adapters, if it has any.
    pub fn with_lora_dropout(mut self, dropout: f64) -> Self {
        let frozen = self.lora.is_frozen();
        let lora = self.lora.into_inner().map(|lora| {
            let config = LoraConfig { dropout, ..lora.config.clone() };
            self.config.lora = Some(config.clone());
            Lora { config, ..lora }
        });
        self.lora = Freezable::new(lora).set_frozen::<B>(frozen);
        self
    }

    /// The same model with its adapters taken off, not folded in.
    pub fn without_lora(mut self) -> Self {
        self.lora = Freezable::new(None);
        self.config.lora = None;
        self
    }

    /// The same model with the adapters folded into the decoder.
    pub fn merge_lora(mut self) -> Self {
        if let Some(lora) = &*self.lora {
            let frozen = self.language_model.is_frozen();
            let merged = self.language_model.clone().into_inner().merge_lora(lora);
            self.language_model = Freezable::new(merged).set_frozen::<B>(frozen);
        }
        self.lora = Freezable::new(None);
        self.config.lora = None;
        self
    }

    /// The output head, `[d, vocab]`.
    pub fn lm_head_weight(&self) -> Tensor<B, 2> {
        self.language_model.lm_head_weight()
    }
}
