//! Dropout whose masks are functions of keys: the same whatever the batch, the device or the number of recomputes.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData, TensorMetadata};
use rayon::prelude::*;

use dualspeed_core::rng::{draw, mix_in};

/// The random state of every row of the activations.
#[derive(Clone, Debug)]
pub struct DropoutKeys<B: Backend> {
    /// One state per row.
    pub rows: Arc<[u64]>,
    /// The states as `[2 * rows]` integers, low and high 32 bits of each, for backends that make masks on the device.
    pub on_device: IntTensor<B>,
}

impl<B: Backend> DropoutKeys<B> {
    /// Uploads the states.
    pub fn new(rows: Vec<u64>, device: &B::Device) -> Self {
        let halves: Vec<i32> =
            rows.iter().flat_map(|state| [*state as i32, (*state >> 32) as i32]).collect();
        // In one dimension: rows of two would be padded on some devices, and copied at every use.
        let halves = TensorData::new(halves, [2 * rows.len()]);
        let on_device = Tensor::<B, 1, Int>::from_data(halves, device).into_primitive();
        Self { rows: rows.into(), on_device }
    }

    /// The states of some of the rows, each any number of times.
    ///
    /// # Panics
    /// When there is no row of such a number.
    pub fn select(&self, rows: &[usize], device: &B::Device) -> Self {
        Self::new(rows.iter().map(|row| self.rows[*row]).collect(), device)
    }
}

/// Dropout at one place of a model: an element's fate depends on its row's key, the place and its column only, so it can be
/// decided again, or in parts. Nothing of it is kept between the passes.
#[derive(Clone, Debug)]
pub struct Dropout<B: Backend> {
    /// The state of every row.
    pub keys: DropoutKeys<B>,
    /// What sets the mask apart from those of other places.
    pub place: u64,
    /// The probability of a zero; what stays is divided by `1 - p`.
    pub p: f64,
}

/// Default body of [`Backend::fused_dropout`](crate::Backend::fused_dropout).
pub(crate) fn dropout<B: Backend>(
    x: FloatTensor<B>,
    dropout: &Dropout<B>,
    sum: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let (shape, dtype) = (x.shape(), x.dtype());
    let d = shape[shape.num_dims() - 1];
    let data = TensorData::new(mask(dropout, d), shape).convert_dtype(dtype);
    let mask = B::float_from_data(data, &B::float_device(&x));
    let masked = B::float_mul(x, mask);
    match sum {
        Some(sum) => B::float_add(sum, masked),
        None => masked,
    }
}

/// The factors, `[rows, d]`.
pub(crate) fn mask<B: Backend>(dropout: &Dropout<B>, d: usize) -> Vec<f32> {
    let rows = &dropout.keys.rows[..];
    let keep = (1.0 / (1.0 - dropout.p)) as f32;
    let threshold = threshold(dropout.p);
    let mut values = vec![0f32; rows.len() * d];
    values.par_chunks_mut(d.max(1)).zip(rows).for_each(|(row, state)| {
        let state = mix_in(*state, dropout.place);
        for (index, quad) in row.chunks_mut(4).enumerate() {
            let mut bits = draw(state, index as u64);
            for value in quad {
                *value = if bits & 0xFFFF < threshold { 0.0 } else { keep };
                bits >>= 16;
            }
        }
    });
    values
}

/// The probability in units of 2^-16: a mask element takes 16 random bits.
pub(crate) fn threshold(p: f64) -> u64 {
    (p * 65_536.0).round() as u64
}
