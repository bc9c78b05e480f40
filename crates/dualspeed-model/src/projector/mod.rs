//! Projectors: features of a vision tower in, tokens in the language model's embedding space out. The counts need not be equal.
//!
//! | module | concept |
//! |---|---|
//! | this one | any projector, as one module |
//! | [`mlp`] | LLaVA's linear layers |
//! | [`custom`] | a projector of another crate; the registry |

pub mod custom;
pub mod mlp;

use burn::module::Module;
use burn::tensor::Tensor;
use dualspeed_ops::Backend;

pub use custom::{CustomProjector, ProjectorFactory, ProjectorRegistry};
pub use mlp::MlpProjector;

use crate::config::{ModelConfigError, ProjectorType, VisionGeometry};
use crate::nn::Init;

/// A projector of any kind. Parameters go by the kind's own paths: the variant's name is in none of them.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // One per model.
pub enum Projector<B: Backend> {
    /// One or two linear layers.
    Mlp(MlpProjector<B>),
    /// A projector of another crate.
    Custom(CustomProjector<B>),
}

impl<B: Backend> Projector<B> {
    /// Builds a projector from the features of `vision` to embeddings of width `d`, with initial weights that are a function of
    /// `init`'s seed and path.
    ///
    /// # Errors
    /// [`ModelConfigError::Unknown`] if nobody registered a projector of that name.
    pub fn init(
        init: &Init<'_, B>,
        kind: &ProjectorType,
        vision: &VisionGeometry,
        d: usize,
        registry: &ProjectorRegistry,
    ) -> Result<Self, ModelConfigError> {
        let d_v = vision.hidden_size;
        Ok(match kind {
            ProjectorType::Mlp2xGelu => Self::Mlp(MlpProjector::init(init, true, d_v, d)),
            ProjectorType::Linear => Self::Mlp(MlpProjector::init(init, false, d_v, d)),
            ProjectorType::Custom(config) => Self::Custom(registry.build(config, vision, d, init)?),
        })
    }

    /// Projects features, `[images, n, d_v] -> [images, m, d]`.
    pub fn forward(&self, features: Tensor<B, 3>) -> Tensor<B, 3> {
        match self {
            Self::Mlp(projector) => projector.forward(features),
            Self::Custom(projector) => projector.forward(features),
        }
    }

    /// Whether each token is made of one feature vector alone (`m == n`), so that tokens can be selected before they are
    /// projected.
    pub fn is_per_token(&self) -> bool {
        match self {
            Self::Mlp(_) => true,
            Self::Custom(projector) => projector.config.merge == 1,
        }
    }

    /// LLaVA's linear layers, if it is made of them.
    pub fn mlp(&self) -> Option<&MlpProjector<B>> {
        match self {
            Self::Mlp(projector) => Some(projector),
            Self::Custom(_) => None,
        }
    }
}
