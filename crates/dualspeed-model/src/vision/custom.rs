//! A vision tower of another crate: its code behind a trait, its weights by name, known by the name in the configuration.

use std::fmt::Debug;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use dualspeed_core::{MakerError, Registry, RegistryError};
use dualspeed_ops::{AutodiffBackend, Backend};

use super::VisionTower;
use super::features::{Needs, VisionFeatures};
use crate::config::{CustomVisionConfig, VisionGeometry};
use crate::nn::{Init, ParamMap, TypeMap};

/// The code of a vision tower that another crate brings; implement it for every backend and register it by name.
pub trait TowerFactory<B: Backend>: Debug + Send + Sync {
    /// The tower's weights with their initial values; a tower that has none returns an empty map.
    fn init(&self, init: &Init<'_, B>) -> ParamMap<B>;

    /// Features of `pixel_values` `[images, 3, side, side]`: the hidden state `[images, tokens, hidden_size]` of the
    /// configuration, and those of `needs` that the tower can make.
    fn features(
        &self,
        params: &ParamMap<B>,
        pixel_values: Tensor<B, 4>,
        needs: &Needs,
    ) -> VisionFeatures<B>;
}

/// Vision towers of other crates by name.
#[derive(Clone, Debug)]
pub struct TowerRegistry(Registry<CustomVisionConfig, TypeMap>);

impl Default for TowerRegistry {
    fn default() -> Self {
        Self(Registry::new("vision tower"))
    }
}

impl TowerRegistry {
    /// Adds a tower that configurations name as `vision.kind`; `make` reads its options. It is registered for a backend with
    /// gradients and the one inside.
    pub fn with<B: AutodiffBackend, T>(
        self,
        name: impl Into<String>,
        make: impl Fn(&CustomVisionConfig) -> Result<T, MakerError> + Send + Sync + 'static,
    ) -> Self
    where
        T: TowerFactory<B> + TowerFactory<B::InnerBackend> + 'static,
    {
        Self(self.0.with(name, move |config: &CustomVisionConfig| {
            let tower = Arc::new(make(config)?);
            let inner: Arc<dyn TowerFactory<B::InnerBackend>> = tower.clone();
            let outer: Arc<dyn TowerFactory<B>> = tower;
            Ok(Box::new(TypeMap::default().with(outer).with(inner)))
        }))
    }

    /// Builds the tower that a configuration names.
    ///
    /// # Errors
    /// [`RegistryError`] if no tower of that name is registered for this backend, or it refuses its options.
    pub fn build<B: Backend>(
        &self,
        config: &CustomVisionConfig,
        init: &Init<'_, B>,
    ) -> Result<CustomTower<B>, RegistryError> {
        let code = *self.0.build(&config.kind, config)?;
        let Some(factory) = code.get::<Arc<dyn TowerFactory<B>>>() else {
            return Err(RegistryError::Unknown {
                kind: "vision tower",
                name: config.kind.clone(),
                nearest: None,
                known: self.0.names(),
            });
        };
        Ok(CustomTower { params: factory.init(init), code, config: config.clone() })
    }
}

/// A vision tower of another crate.
#[derive(Module, Debug)]
pub struct CustomTower<B: Backend> {
    /// Its weights.
    pub params: ParamMap<B>,
    /// Its code, for each backend.
    #[module(skip)]
    code: TypeMap,
    /// The configuration it was built from.
    pub config: CustomVisionConfig,
}

impl<B: Backend> VisionTower<B> for CustomTower<B> {
    fn geometry(&self) -> VisionGeometry {
        self.config.geometry()
    }

    fn features(&self, pixel_values: Tensor<B, 4>, needs: &Needs) -> VisionFeatures<B> {
        match self.code.get::<Arc<dyn TowerFactory<B>>>() {
            Some(tower) => tower.features(&self.params, pixel_values, needs),
            // A tower is only built for backends that it is registered for; gradients taken off lead to the inner one.
            None => unreachable!("the tower was built for this backend"),
        }
    }
}
