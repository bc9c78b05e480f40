//! Dropout masks that are functions of keys: the same whatever the batch, the device or the number of recomputes.

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, Int, Tensor, TensorData};
use rayon::prelude::*;

use crate::rng::{draw, mix_in};

/// The random state of every row of the activations.
#[derive(Clone, Debug)]
pub struct DropoutKeys<B: Backend> {
    /// One state per row.
    pub rows: Arc<[u64]>,
    /// The same as `[rows, 2]` integers, low and high 32 bits, for backends that make masks on the device.
    pub on_device: IntTensor<B>,
}

impl<B: Backend> DropoutKeys<B> {
    /// Uploads the states.
    pub fn new(rows: Vec<u64>, device: &B::Device) -> Self {
        let halves: Vec<i32> =
            rows.iter().flat_map(|state| [*state as i32, (*state >> 32) as i32]).collect();
        let halves = TensorData::new(halves, [rows.len(), 2]);
        let on_device = Tensor::<B, 2, Int>::from_data(halves, device).into_primitive();
        Self { rows: rows.into(), on_device }
    }
}

/// Default body of [`Backend::fused_dropout_mask`](crate::Backend::fused_dropout_mask).
pub(crate) fn mask<B: Backend>(
    keys: &DropoutKeys<B>,
    place: u64,
    p: f64,
    d: usize,
    dtype: DType,
) -> FloatTensor<B> {
    let keep = (1.0 / (1.0 - p)) as f32;
    let threshold = threshold(p);
    let mut values = vec![0f32; keys.rows.len() * d];
    values.par_chunks_mut(d.max(1)).zip(&keys.rows[..]).for_each(|(row, state)| {
        let state = mix_in(*state, place);
        for (index, quad) in row.chunks_mut(4).enumerate() {
            let mut bits = draw(state, index as u64);
            for value in quad {
                *value = if bits & 0xFFFF < threshold { 0.0 } else { keep };
                bits >>= 16;
            }
        }
    });
    let device = B::int_device(&keys.on_device);
    let data = TensorData::new(values, [keys.rows.len(), d]).convert_dtype(dtype);
    Tensor::<B, 2>::from_data(data, (&device, dtype)).into_primitive().tensor()
}

/// 16 bits per element: the probability is exact to 2^-16.
pub(crate) fn threshold(p: f64) -> u64 {
    (p * 65_536.0).round() as u64
}
