//! Linear layers and embedding tables.

use burn::module::{Module, Param};
use burn::tensor::{Int, Tensor};
use dualspeed_ops::Backend;

use super::Init;

/// `y = x W + b` with `weight` in Burn's layout `[d_in, d_out]`.
#[derive(Module, Debug)]
pub struct Linear<B: Backend> {
    /// `[d_in, d_out]`.
    pub weight: Param<Tensor<B, 2>>,
    /// `[d_out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

impl<B: Backend> Linear<B> {
    /// Weights normal with standard deviation `gain / sqrt(d_in)`, zero bias.
    pub fn init(init: &Init<'_, B>, d_in: usize, d_out: usize, bias: bool, gain: f64) -> Self {
        Self {
            weight: init.at("weight").normal([d_in, d_out], gain / (d_in as f64).sqrt()),
            bias: bias.then(|| init.at("bias").constant([d_out], 0.0)),
        }
    }

    /// `[.., d_in] -> [.., d_out]`.
    pub fn forward<const D: usize>(&self, x: Tensor<B, D>) -> Tensor<B, D> {
        dualspeed_ops::linear(x, self.weight.val(), self.bias.as_ref().map(Param::val))
    }

    /// The same, added to `residual` of the result's shape.
    pub fn forward_onto<const D: usize>(
        &self,
        x: Tensor<B, D>,
        residual: Tensor<B, D>,
    ) -> Tensor<B, D> {
        let bias = self.bias.as_ref().map(Param::val);
        dualspeed_ops::linear_add(x, self.weight.val(), bias, residual)
    }
}

/// A table of vectors.
#[derive(Module, Debug)]
pub struct Embedding<B: Backend> {
    /// `[entries, d]`.
    pub weight: Param<Tensor<B, 2>>,
}

impl<B: Backend> Embedding<B> {
    /// Rows normal with standard deviation `std`.
    pub fn init(init: &Init<'_, B>, entries: usize, d: usize, std: f64) -> Self {
        Self { weight: init.at("weight").normal([entries, d], std) }
    }

    /// `[n] -> [n, d]`; ids must be below the number of entries.
    pub fn forward(&self, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        dualspeed_ops::select_rows(self.weight.val(), ids)
    }
}
