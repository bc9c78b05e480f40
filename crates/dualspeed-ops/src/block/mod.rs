//! A decoder block as one operation: its parameters, its settings, its cache, and what its backward pass keeps.
//!
//! As one autodiff node per block, with a backward written by hand, a training step holds per block exactly what
//! [`Keep`] says and computes the rest again: layer-wise recomputation without a nested autodiff graph.

mod cache;
mod params;
mod target;

use std::sync::Arc;

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{Int, Tensor, TensorData};

pub use cache::BlockCache;
pub(crate) use cache::KeysValues;
pub(crate) use params::SLOTS;
pub use params::{BlockLinear, BlockParams};
pub use target::{PerTarget, Target};

use crate::dropout::DropoutKeys;
use crate::types::AttentionSpec;

/// What the backward pass of a block finds ready; the rest it computes again. Ascending in memory, descending in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Keep {
    /// The block's input only: everything is computed again, except the last product.
    Input,
    /// The attention half: input, queries, keys, values, attention output, the sum after the output projection.
    Attention,
    /// The results of all products and of the attention; norms and SwiGLU are computed again.
    Products,
    /// Everything but what dropout left of the adapters' inputs.
    Activations,
    /// Everything.
    #[default]
    All,
}

/// Adapter dropout in a block.
#[derive(Clone, Debug)]
pub struct BlockDropout<B: Backend> {
    /// The state of every row of the block's input.
    pub keys: DropoutKeys<B>,
    /// The share of the adapters' inputs set to zero.
    pub p: f64,
    /// What sets the mask of each adapter apart from all others.
    pub places: PerTarget<u64>,
}

/// Rows of `[batch * seq, d]` activations, on the host and on the device, in the order in which they are wanted.
#[derive(Clone, Debug)]
pub struct SelectedRows<B: Backend> {
    pub(crate) ids: Arc<[usize]>,
    pub(crate) on_device: IntTensor<B>,
}

impl<B: Backend> SelectedRows<B> {
    /// Uploads the row numbers.
    pub fn new(ids: &[usize], device: &B::Device) -> Self {
        let data =
            TensorData::new(ids.iter().map(|id| *id as i64).collect::<Vec<_>>(), [ids.len()]);
        let on_device = Tensor::<B, 1, Int>::from_data(data, device).into_primitive();
        Self { ids: ids.into(), on_device }
    }
}

/// How a block is run.
#[derive(Clone, Debug)]
pub struct BlockContext<B: Backend> {
    /// Sequences in the batch; the activations are `[batch * seq, d]`.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; a divisor of `heads`.
    pub kv_heads: usize,
    /// Added to the mean square in all RMS norms.
    pub eps: f64,
    /// Rotary cosines, `[1 or batch, seq, d_head / 2]`.
    pub cos: FloatTensor<B>,
    /// Rotary sines, `[1 or batch, seq, d_head / 2]`.
    pub sin: FloatTensor<B>,
    /// Which query may see which key.
    pub attention: AttentionSpec,
    /// alpha / r of the adapters.
    pub lora_scale: f64,
    /// Dropout of the adapters' inputs.
    pub dropout: Option<BlockDropout<B>>,
    /// Rows whose output is wanted; all where absent. Keys and values are computed for every row, the output projection and
    /// all that follows for the wanted ones only.
    pub rows: Option<SelectedRows<B>>,
    /// What the backward pass finds ready.
    pub keep: Keep,
}
