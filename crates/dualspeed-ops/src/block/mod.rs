//! A decoder block as one operation: its weights, its settings, and what its backward pass keeps.
//!
//! As one autodiff node per block, with a backward written by hand, a training step holds per block exactly what
//! [`Keep`] says and computes the rest again: layer-wise recomputation without a nested autodiff graph.

mod backward;
mod forward;

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

pub(crate) use backward::backward;
pub(crate) use forward::{Saved, forward};

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

/// A linear layer of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockLinear<T> {
    /// `[d_in, d_out]`.
    pub weight: T,
    /// The low-rank adapter, `[d_in, r]` and `[r, d_out]`.
    pub lora: Option<(T, T)>,
}

/// The parameters of a Llama block, or something for each of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct BlockParams<T> {
    pub input_layernorm: T,
    pub q_proj: BlockLinear<T>,
    pub k_proj: BlockLinear<T>,
    pub v_proj: BlockLinear<T>,
    pub o_proj: BlockLinear<T>,
    pub post_attention_layernorm: T,
    pub gate_proj: BlockLinear<T>,
    pub up_proj: BlockLinear<T>,
    pub down_proj: BlockLinear<T>,
}

/// Slots for tensors in [`BlockParams`]: two norms, seven layers of a weight and two factors.
pub(crate) const SLOTS: usize = 2 + 7 * 3;

impl<T> BlockLinear<T> {
    fn map<'a, U>(&'a self, f: &mut impl FnMut(&'a T) -> U) -> BlockLinear<U> {
        BlockLinear { weight: f(&self.weight), lora: self.lora.as_ref().map(|(a, b)| (f(a), f(b))) }
    }
}

impl<T> BlockParams<T> {
    /// Applies `f` to every parameter, in a fixed order.
    pub fn map<'a, U>(&'a self, mut f: impl FnMut(&'a T) -> U) -> BlockParams<U> {
        let f = &mut f;
        BlockParams {
            input_layernorm: f(&self.input_layernorm),
            q_proj: self.q_proj.map(f),
            k_proj: self.k_proj.map(f),
            v_proj: self.v_proj.map(f),
            o_proj: self.o_proj.map(f),
            post_attention_layernorm: f(&self.post_attention_layernorm),
            gate_proj: self.gate_proj.map(f),
            up_proj: self.up_proj.map(f),
            down_proj: self.down_proj.map(f),
        }
    }

    /// The linear layers in the order of the fields.
    pub(crate) fn layers(&self) -> [&BlockLinear<T>; 7] {
        let Self { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = self;
        [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
    }

    /// The same with other adapters.
    pub(crate) fn with_adapters(&self, adapters: [Option<(T, T)>; 7]) -> Self
    where
        T: Clone,
    {
        let mut with = self.map(T::clone);
        let Self { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, .. } = &mut with;
        let layers = [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj];
        for (layer, lora) in layers.into_iter().zip(adapters) {
            layer.lora = lora;
        }
        with
    }

    /// All parameters in a fixed order, `None` for absent adapters.
    pub(crate) fn slots(self) -> [Option<T>; SLOTS] {
        let linear = |layer: BlockLinear<T>| {
            let (a, b) = layer.lora.unzip();
            [Some(layer.weight), a, b]
        };
        let mut slots = [Some(self.input_layernorm), Some(self.post_attention_layernorm)]
            .into_iter()
            .chain(linear(self.q_proj))
            .chain(linear(self.k_proj))
            .chain(linear(self.v_proj))
            .chain(linear(self.o_proj))
            .chain(linear(self.gate_proj))
            .chain(linear(self.up_proj))
            .chain(linear(self.down_proj));
        std::array::from_fn(|_| slots.next().flatten())
    }
}

/// Adapter dropout in a block.
#[derive(Clone, Debug)]
pub struct BlockDropout<B: Backend> {
    /// The state of every row.
    pub keys: DropoutKeys<B>,
    /// The share of the adapters' inputs set to zero.
    pub p: f64,
    /// For each adapter, in the order of [`BlockParams`]' fields, what sets its mask apart from all others.
    pub places: [u64; 7],
}

/// How a block is run.
#[derive(Clone, Debug)]
pub struct BlockContext<B: Backend> {
    /// Sequences in the batch; the activations are `[batch * seq, d]`.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Added to the mean square in both norms.
    pub eps: f64,
    /// Rotary cosines, `[1 or batch, seq, d_head / 2]`.
    pub cos: FloatTensor<B>,
    /// Rotary sines, same shape.
    pub sin: FloatTensor<B>,
    /// Who sees whom.
    pub attention: AttentionSpec,
    /// alpha / r of the adapters.
    pub lora_scale: f64,
    /// Dropout of the adapters' inputs.
    pub dropout: Option<BlockDropout<B>>,
    /// What the backward pass finds ready.
    pub keep: Keep,
}
