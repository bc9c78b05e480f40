//! Deterministic initial weights: every parameter is a function of (seed, its path) and nothing
//! else, so adding a module changes no other module's weights.

use burn::module::{Param, ParamId};
use burn::tensor::{DType, Distribution, Shape, Tensor, TensorData};
use dualspeed_ops::Backend;

use crate::rng::{SplitMix, hash_str};

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
    storage: Option<DType>,
    synthetic: bool,
}

/// The values of a parameter.
#[derive(Clone, Copy, Debug)]
enum Fill {
    Normal(f64),
    Uniform(f64),
    Constant(f64),
}

impl Fill {
    fn draw(self, rng: &mut SplitMix) -> f64 {
        match self {
            Self::Normal(std) => std * rng.normal(),
            Self::Uniform(bound) => bound * (2.0 * rng.uniform() - 1.0),
            Self::Constant(value) => value,
        }
    }

    /// Drawn by the device.
    fn on_device<B: Backend, const D: usize>(
        self,
        shape: [usize; D],
        options: (&B::Device, DType),
    ) -> Tensor<B, D> {
        match self {
            Self::Normal(std) => Tensor::random(shape, Distribution::Normal(0.0, std), options),
            Self::Uniform(bound) => {
                Tensor::random(shape, Distribution::Uniform(-bound, bound), options)
            }
            Self::Constant(value) => Tensor::full(shape, value, options),
        }
    }
}

impl<'a, B: Backend> Init<'a, B> {
    /// The root of a module tree.
    pub fn new(seed: u64, device: &'a B::Device) -> Self {
        Self { seed, path: String::new(), device, trainable: true, storage: None, synthetic: false }
    }

    /// The same with parameters that take no gradient.
    pub fn frozen(mut self) -> Self {
        self.trainable = false;
        self
    }

    /// The same with parameters stored in `dtype`: what frozen weights of a large model are kept in. The operations
    /// compute in the type of the activations, whatever the weights' is.
    pub fn stored_in(mut self, dtype: DType) -> Self {
        self.storage = Some(dtype);
        self
    }

    /// The same with values drawn by the device, in no reproducible order: 7 billion of them take milliseconds
    /// instead of minutes. For benchmarks.
    pub fn synthetic(mut self) -> Self {
        self.synthetic = true;
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
        self.filled(shape, Fill::Normal(std))
    }

    /// Uniform in `[-bound, bound)`.
    pub fn uniform<const D: usize>(&self, shape: [usize; D], bound: f64) -> Param<Tensor<B, D>> {
        self.filled(shape, Fill::Uniform(bound))
    }

    /// One value everywhere.
    pub fn constant<const D: usize>(&self, shape: [usize; D], value: f64) -> Param<Tensor<B, D>> {
        self.filled(shape, Fill::Constant(value))
    }

    fn filled<const D: usize>(
        &self,
        shape: [usize; D],
        fill: Fill,
    ) -> Param<Tensor<B, D>> {
        let path_hash = hash_str(&self.path);
        let (seed, storage, synthetic) = (self.seed, self.storage, self.synthetic);
        Param::uninitialized(
            ParamId::from(path_hash),
            move |device, require_grad| {
                let tensor = if synthetic {
                    fill.on_device(shape, (device, storage.unwrap_or(DType::F32)))
                } else {
                    let mut rng = SplitMix::new(&[seed, path_hash]);
                    let count = shape.iter().product();
                    let values: Vec<f32> =
                        (0..count).map(|_| fill.draw(&mut rng) as f32).collect();
                    let data = TensorData::new(values, shape);
                    match storage {
                        Some(dtype) => Tensor::from_data(data, (device, dtype)),
                        None => Tensor::from_data(data, device),
                    }
                };
                tensor.set_require_grad(require_grad)
            },
            self.device.clone(),
            self.trainable,
            Shape::from(shape),
        )
    }
}
