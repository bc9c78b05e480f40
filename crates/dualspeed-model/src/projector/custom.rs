//! A projector of another crate: its code behind a trait, its weights by name, known by the name in the configuration.

use std::fmt::Debug;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Tensor;
use dualspeed_core::{MakerError, Registry, RegistryError};
use dualspeed_ops::{AutodiffBackend, Backend};

use crate::config::{CustomProjectorConfig, VisionGeometry};
use crate::nn::{Init, ParamMap, TypeMap};

/// The code of a projector that another crate brings; implement it for every backend and register it by name.
pub trait ProjectorFactory<B: Backend>: Debug + Send + Sync {
    /// The projector's weights with their initial values, from features of `vision` to embeddings of width `d`.
    fn init(&self, init: &Init<'_, B>, vision: &VisionGeometry, d: usize) -> ParamMap<B>;

    /// Projects features, `[images, n, d_v] -> [images, n / merge^2, d]`; tokens stay in the order of their rows.
    fn forward(&self, params: &ParamMap<B>, features: Tensor<B, 3>) -> Tensor<B, 3>;
}

/// Projectors of other crates by name.
#[derive(Clone, Debug)]
pub struct ProjectorRegistry(Registry<CustomProjectorConfig, TypeMap>);

impl Default for ProjectorRegistry {
    fn default() -> Self {
        Self(Registry::new("projector"))
    }
}

impl ProjectorRegistry {
    /// Adds a projector that configurations name as `mm_projector_type`; `make` reads its options. It is registered for a backend
    /// with gradients and the one inside.
    pub fn with<B: AutodiffBackend, P>(
        self,
        name: impl Into<String>,
        make: impl Fn(&CustomProjectorConfig) -> Result<P, MakerError> + Send + Sync + 'static,
    ) -> Self
    where
        P: ProjectorFactory<B> + ProjectorFactory<B::InnerBackend> + 'static,
    {
        Self(self.0.with(name, move |config: &CustomProjectorConfig| {
            let projector = Arc::new(make(config)?);
            let inner: Arc<dyn ProjectorFactory<B::InnerBackend>> = projector.clone();
            let outer: Arc<dyn ProjectorFactory<B>> = projector;
            Ok(Box::new(TypeMap::default().with(outer).with(inner)))
        }))
    }

    /// Builds the projector that a configuration names.
    ///
    /// # Errors
    /// [`RegistryError`] if no projector of that name is registered for this backend, or it refuses its options.
    pub fn build<B: Backend>(
        &self,
        config: &CustomProjectorConfig,
        vision: &VisionGeometry,
        d: usize,
        init: &Init<'_, B>,
    ) -> Result<CustomProjector<B>, RegistryError> {
        let code = *self.0.build(&config.kind, config)?;
        let Some(factory) = code.get::<Arc<dyn ProjectorFactory<B>>>() else {
            return Err(RegistryError::Unknown {
                kind: "projector",
                name: config.kind.clone(),
                nearest: None,
                known: self.0.names(),
            });
        };
        let params = factory.init(init, vision, d);
        Ok(CustomProjector { params, code, config: config.clone() })
    }
}

/// A projector of another crate.
#[derive(Module, Debug)]
pub struct CustomProjector<B: Backend> {
    /// Its weights.
    pub params: ParamMap<B>,
    /// Its code, for each backend.
    #[module(skip)]
    code: TypeMap,
    /// The configuration it was built from.
    pub config: CustomProjectorConfig,
}

impl<B: Backend> CustomProjector<B> {
    /// Projects features, `[images, n, d_v] -> [images, n / merge^2, d]`.
    pub fn forward(&self, features: Tensor<B, 3>) -> Tensor<B, 3> {
        match self.code.get::<Arc<dyn ProjectorFactory<B>>>() {
            Some(projector) => projector.forward(&self.params, features),
            // A projector is only built for backends that it is registered for; gradients taken off lead to the inner one.
            None => unreachable!("the projector was built for this backend"),
        }
    }
}
