//! The vision towers a model can have, as one module.

use burn::module::Module;
use burn::tensor::Tensor;
use dualspeed_ops::Backend;

use crate::config::VisionConfig;
use crate::efficientnet::EfficientNet;
use crate::init::Init;
use crate::vision::{Geometry, Needs, VisionFeatures, VisionTower};
use crate::vit::Vit;

/// A vision tower of any kind. Parameters go by the kind's own paths: the variant's name is in none of them.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // One per model.
pub enum Tower<B: Backend> {
    /// CLIP's transformer.
    Vit(Vit<B>),
    /// EfficientNet-Lite0.
    EfficientNet(EfficientNet<B>),
}

impl<B: Backend> Tower<B> {
    /// The configuration it was built from.
    pub fn config(&self) -> VisionConfig {
        match self {
            Self::Vit(tower) => tower.config.clone().into(),
            Self::EfficientNet(tower) => tower.config.clone().into(),
        }
    }

    /// The transformer, if it is one.
    pub fn vit(&self) -> Option<&Vit<B>> {
        match self {
            Self::Vit(tower) => Some(tower),
            Self::EfficientNet(_) => None,
        }
    }
}

impl VisionConfig {
    /// A tower with initial weights that are a function of `init`'s seed and path.
    pub fn init<B: Backend>(&self, init: &Init<'_, B>) -> Tower<B> {
        match self {
            Self::Vit(config) => config.init(init).into(),
            Self::EfficientNet(config) => config.init(init).into(),
        }
    }
}

impl<B: Backend> From<Vit<B>> for Tower<B> {
    fn from(tower: Vit<B>) -> Self {
        Self::Vit(tower)
    }
}

impl<B: Backend> From<EfficientNet<B>> for Tower<B> {
    fn from(tower: EfficientNet<B>) -> Self {
        Self::EfficientNet(tower)
    }
}

impl<B: Backend> VisionTower<B> for Tower<B> {
    fn geometry(&self) -> Geometry {
        match self {
            Self::Vit(tower) => tower.geometry(),
            Self::EfficientNet(tower) => tower.geometry(),
        }
    }

    fn features(&self, pixel_values: Tensor<B, 4>, needs: Needs) -> VisionFeatures<B> {
        match self {
            Self::Vit(tower) => tower.features(pixel_values, needs),
            Self::EfficientNet(tower) => tower.features(pixel_values, needs),
        }
    }
}
