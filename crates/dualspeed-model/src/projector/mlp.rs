//! LLaVA's projectors: one linear layer, or two with a GELU between them.

use burn::module::Module;
use burn::tensor::Tensor;
use dualspeed_ops::Backend;

use crate::nn::{Init, Linear};

/// `linear` or `mlp2x_gelu`: the second layer is there or not.
#[derive(Module, Debug)]
pub struct MlpProjector<B: Backend> {
    /// `[d_v, d]`.
    pub linear_1: Linear<B>,
    /// `[d, d]`, after a GELU.
    pub linear_2: Option<Linear<B>>,
}

impl<B: Backend> MlpProjector<B> {
    /// A projector with initial weights.
    pub fn init(init: &Init<'_, B>, two_layers: bool, d_v: usize, d: usize) -> Self {
        let linear_2 = two_layers.then(|| Linear::init(&init.at("linear_2"), d, d, true, 1.0));
        Self { linear_1: Linear::init(&init.at("linear_1"), d_v, d, true, 1.0), linear_2 }
    }

    /// `[images, n, d_v] -> [images, n, d]`.
    pub fn forward(&self, features: Tensor<B, 3>) -> Tensor<B, 3> {
        let [images, n, d_v] = features.dims();
        let x = self.linear_1.forward(features.reshape([images * n, d_v]));
        let x = match &self.linear_2 {
            Some(linear_2) => linear_2.forward(dualspeed_ops::gelu(x)),
            None => x,
        };
        let d = x.dims()[1];
        x.reshape([images, n, d])
    }
}
