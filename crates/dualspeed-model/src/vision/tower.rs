//! The vision towers a model can have, as one module.

use burn::module::Module;
use burn::tensor::Tensor;
use dualspeed_ops::Backend;

use super::features::{Needs, VisionFeatures};
use super::{ClipVit, CustomTower, EfficientNet, TowerRegistry, VisionTower};
use crate::config::{ModelConfigError, VisionConfig, VisionGeometry};
use crate::nn::Init;

/// A vision tower of any kind. Parameters go by the kind's own paths: the variant's name is in none of them.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // One per model.
pub enum Tower<B: Backend> {
    /// CLIP's transformer.
    Vit(ClipVit<B>),
    /// EfficientNet-Lite0.
    EfficientNet(EfficientNet<B>),
    /// A tower of another crate.
    Custom(CustomTower<B>),
}

impl VisionConfig {
    /// Builds a tower with initial weights that are a function of `init`'s seed and path; towers of other crates come from
    /// `registry`.
    ///
    /// # Errors
    /// [`ModelConfigError::Unknown`] if nobody registered a tower of that name.
    pub fn init<B: Backend>(
        &self,
        init: &Init<'_, B>,
        registry: &TowerRegistry,
    ) -> Result<Tower<B>, ModelConfigError> {
        Ok(match self {
            Self::Vit(config) => Tower::Vit(config.init(init)),
            Self::EfficientNet(config) => Tower::EfficientNet(config.init(init)),
            Self::Custom(config) => Tower::Custom(registry.build(config, init)?),
        })
    }
}

impl<B: Backend> Tower<B> {
    /// The configuration it was built from.
    pub fn config(&self) -> VisionConfig {
        match self {
            Self::Vit(tower) => tower.config.clone().into(),
            Self::EfficientNet(tower) => tower.config.clone().into(),
            Self::Custom(tower) => tower.config.clone().into(),
        }
    }

    /// CLIP's transformer, if it is one.
    pub fn vit(&self) -> Option<&ClipVit<B>> {
        match self {
            Self::Vit(tower) => Some(tower),
            _ => None,
        }
    }

    fn encoder(&self) -> &dyn VisionTower<B> {
        match self {
            Self::Vit(tower) => tower,
            Self::EfficientNet(tower) => tower,
            Self::Custom(tower) => tower,
        }
    }
}

impl<B: Backend> From<ClipVit<B>> for Tower<B> {
    fn from(tower: ClipVit<B>) -> Self {
        Self::Vit(tower)
    }
}

impl<B: Backend> From<EfficientNet<B>> for Tower<B> {
    fn from(tower: EfficientNet<B>) -> Self {
        Self::EfficientNet(tower)
    }
}

impl<B: Backend> VisionTower<B> for Tower<B> {
    fn geometry(&self) -> VisionGeometry {
        self.encoder().geometry()
    }

    fn features(&self, pixel_values: Tensor<B, 4>, needs: &Needs) -> VisionFeatures<B> {
        self.encoder().features(pixel_values, needs)
    }
}
