//! AdamW (Loshchilov & Hutter, arXiv 1711.05101, as in PyTorch) in one pass over host memory, and its state.

use burn::tensor::{Tensor, TensorData};
use dualspeed_ops::{AdamWConfig, Backend, to_f32};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// The constants of AdamW.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

/// First and second moment of one parameter, flattened, in f32, and how often it was updated.
#[derive(Clone, Debug)]
pub(crate) struct Moments<B: Backend> {
    pub(crate) updates: u64,
    pub(crate) store: Store<B>,
}

/// Where the moments live: beside the arithmetic.
#[derive(Clone, Debug)]
pub(crate) enum Store<B: Backend> {
    Host { m: Vec<f32>, v: Vec<f32> },
    Device { m: Tensor<B, 1>, v: Tensor<B, 1> },
}

/// The moments of one parameter on the host, as records and checkpoints hold them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostMoments {
    /// How often the parameter was updated.
    pub updates: u64,
    /// The first moment, row-major.
    pub m: Vec<f32>,
    /// The second moment, row-major.
    pub v: Vec<f32>,
}

impl<B: Backend> Moments<B> {
    pub(crate) fn to_host(&self) -> HostMoments {
        let (m, v) = match &self.store {
            Store::Host { m, v } => (m.clone(), v.clone()),
            Store::Device { m, v } => (to_f32(m.clone()), to_f32(v.clone())),
        };
        HostMoments { updates: self.updates, m, v }
    }

    pub(crate) fn from_host(host: HostMoments, on_host: bool, device: &B::Device) -> Self {
        let HostMoments { updates, m, v } = host;
        let store = if on_host {
            Store::Host { m, v }
        } else {
            let length = m.len();
            Store::Device {
                m: Tensor::from_data(TensorData::new(m, [length]), device),
                v: Tensor::from_data(TensorData::new(v, [length]), device),
            }
        };
        Self { updates, store }
    }

    pub(crate) fn zeros(length: usize, on_host: bool, device: &B::Device) -> Self {
        let store = if on_host {
            Store::Host { m: vec![0.0; length], v: vec![0.0; length] }
        } else {
            Store::Device { m: Tensor::zeros([length], device), v: Tensor::zeros([length], device) }
        };
        Self { updates: 0, store }
    }
}

const CHUNK: usize = 1 << 14;

impl AdamW {
    /// One update of `param` in place; `scale` multiplies the gradient. All slices have the same
    /// length.
    pub(crate) fn update_host(
        &self,
        lr: f64,
        scale: f64,
        param: &mut [f32],
        grad: &[f32],
        m: &mut [f32],
        v: &mut [f32],
        updates: u64,
    ) {
        let (b1, b2) = (self.beta1 as f32, self.beta2 as f32);
        // Subtracted before rounding: 1 - 0.999 loses four digits in f32.
        let (c1, c2) = ((1.0 - self.beta1) as f32, (1.0 - self.beta2) as f32);
        let (step_size, root) = self.config(scale, 0.0).corrections(lr, updates);
        let (step_size, root) = (step_size as f32, root as f32);
        let (eps, scale) = (self.eps as f32, scale as f32);
        let keep = (1.0 - lr * self.weight_decay) as f32;
        param
            .par_chunks_mut(CHUNK)
            .zip(grad.par_chunks(CHUNK))
            .zip(m.par_chunks_mut(CHUNK).zip(v.par_chunks_mut(CHUNK)))
            .for_each(|((param, grad), (m, v))| {
                for (((p, g), m), v) in param.iter_mut().zip(grad).zip(m).zip(v) {
                    let g = g * scale;
                    *m = b1 * *m + c1 * g;
                    *v = b2 * *v + c2 * g * g;
                    *p = keep * *p - step_size * *m / (v.sqrt() * root + eps);
                }
            });
    }

    /// The same as the backend's update takes them.
    pub(crate) fn config(&self, grad_scale: f64, max_grad_norm: f64) -> AdamWConfig {
        let AdamW { beta1, beta2, eps, weight_decay } = *self;
        AdamWConfig { beta1, beta2, eps, weight_decay, grad_scale, max_grad_norm }
    }
}

/// Sum of squares in f64, in an order that does not depend on the number of threads.
pub(crate) fn sum_of_squares(values: &[f32]) -> f64 {
    let partial: Vec<f64> = values
        .par_chunks(CHUNK)
        .map(|chunk| chunk.iter().map(|value| f64::from(*value) * f64::from(*value)).sum())
        .collect();
    partial.iter().sum()
}

/// Whether no value is NaN or infinite.
pub(crate) fn all_finite(values: &[f32]) -> bool {
    values.par_chunks(CHUNK).all(|chunk| chunk.iter().all(|value| value.is_finite()))
}
