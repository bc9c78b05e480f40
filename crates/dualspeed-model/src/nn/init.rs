//! Deterministic initial weights: every parameter is a function of (seed, its path) and nothing
//! else, so adding a module changes no other module's weights.

use burn::module::{Param, ParamId};
use burn::tensor::{Shape, Tensor, TensorData};
use dualspeed_ops::Backend;

use dualspeed_core::rng::{SplitMix, hash_str};

/// Where in the module tree a parameter is being made, and from which seed.
///
/// Parameters are lazy (a checkpoint that replaces them costs no initialisation), and their
/// [`ParamId`] is the hash of their path: optimiser state keyed by id survives a rebuild.
#[derive(Clone, Debug)]
pub struct Init<'a, B: Backend> {
    seed: u64,
    path: String,
    device: &'a B::Device,
    trainable: bool,
}

impl<'a, B: Backend> Init<'a, B> {
    /// The root of a module tree.
    pub fn new(seed: u64, device: &'a B::Device) -> Self {
        Self { seed, path: String::new(), device, trainable: true }
    }

    /// The same with parameters that take no gradient.
    pub fn frozen(mut self) -> Self {
        self.trainable = false;
        self
    }

    /// A child of this place.
    pub fn at(&self, name: impl std::fmt::Display) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self { path: format!("{}{dot}{name}", self.path), ..self.clone() }
    }

    /// The device parameters are made on.
    pub fn device(&self) -> &'a B::Device {
        self.device
    }

    /// Normal with standard deviation `std`, truncated at two of them.
    pub fn normal<const D: usize>(&self, shape: [usize; D], std: f64) -> Param<Tensor<B, D>> {
        self.filled(shape, move |rng| std * rng.normal())
    }

    /// Uniform in `[-bound, bound)`.
    pub fn uniform<const D: usize>(&self, shape: [usize; D], bound: f64) -> Param<Tensor<B, D>> {
        self.filled(shape, move |rng| bound * (2.0 * rng.uniform() - 1.0))
    }

    /// One value everywhere.
    pub fn constant<const D: usize>(&self, shape: [usize; D], value: f64) -> Param<Tensor<B, D>> {
        self.filled(shape, move |_| value)
    }

    fn filled<const D: usize>(
        &self,
        shape: [usize; D],
        draw: impl Fn(&mut SplitMix) -> f64 + Send + Sync + 'static,
    ) -> Param<Tensor<B, D>> {
        let path_hash = hash_str(&self.path);
        let seed = self.seed;
        Param::uninitialized(
            ParamId::from(path_hash),
            move |device, require_grad| {
                let mut rng = SplitMix::new(&[seed, path_hash]);
                let count = shape.iter().product();
                let values: Vec<f32> = (0..count).map(|_| draw(&mut rng) as f32).collect();
                Tensor::from_data(TensorData::new(values, shape), device)
                    .set_require_grad(require_grad)
            },
            self.device.clone(),
            self.trainable,
            Shape::from(shape),
        )
    }
}
