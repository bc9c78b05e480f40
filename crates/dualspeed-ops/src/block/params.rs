//! The parameters of a decoder block.

use super::target::{PerTarget, Target};

/// A linear layer of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockLinear<T> {
    /// `[d_in, d_out]`.
    pub weight: T,
    /// `[d_out]`; most models have none, Qwen2 has one on queries, keys and values.
    pub bias: Option<T>,
    /// The factors of the low-rank adapter, `[d_in, r]` and `[r, d_out]`.
    pub lora: Option<(T, T)>,
}

/// The parameters of a Llama block, or something for each of them.
///
/// What is optional makes the differences between the families: no biases and no norms per head is Llama, biases on
/// queries, keys and values is Qwen2, norms per head is Qwen3.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockParams<T> {
    /// Weight of the RMS norm before the attention, `[d]`.
    pub input_layernorm: T,
    /// Weight of the RMS norm before the MLP, `[d]`.
    pub post_attention_layernorm: T,
    /// Weight of the RMS norm of every query head before the rotation, `[d_head]`.
    pub q_norm: Option<T>,
    /// Weight of the RMS norm of every key head before the rotation, `[d_head]`.
    pub k_norm: Option<T>,
    /// The linear layers.
    pub linear: PerTarget<BlockLinear<T>>,
}

/// Places of a linear layer in [`BlockParams::slots`]: weight, bias, two factors.
const LINEAR_SLOTS: usize = 4;

/// Places for all parameters of a block: four norms and the linear layers.
pub(crate) const SLOTS: usize = 4 + LINEAR_SLOTS * Target::ALL.len();

impl<T> BlockLinear<T> {
    /// A layer without bias and adapter.
    pub fn new(weight: T) -> Self {
        Self { weight, bias: None, lora: None }
    }

    fn map<'a, U>(&'a self, f: &mut impl FnMut(&'a T) -> U) -> BlockLinear<U> {
        BlockLinear {
            weight: f(&self.weight),
            bias: self.bias.as_ref().map(&mut *f),
            lora: self.lora.as_ref().map(|(a, b)| (f(a), f(b))),
        }
    }

    fn slots(self) -> [Option<T>; LINEAR_SLOTS] {
        let (a, b) = self.lora.unzip();
        [Some(self.weight), self.bias, a, b]
    }
}

impl<T> BlockParams<T> {
    /// Applies `f` to every parameter, in a fixed order.
    pub fn map<'a, U>(&'a self, mut f: impl FnMut(&'a T) -> U) -> BlockParams<U> {
        BlockParams {
            input_layernorm: f(&self.input_layernorm),
            post_attention_layernorm: f(&self.post_attention_layernorm),
            q_norm: self.q_norm.as_ref().map(&mut f),
            k_norm: self.k_norm.as_ref().map(&mut f),
            linear: self.linear.map(|layer| layer.map(&mut f)),
        }
    }

    /// All parameters in a fixed order, `None` for those that the block does not have.
    pub(crate) fn slots(self) -> [Option<T>; SLOTS] {
        let Self { input_layernorm, post_attention_layernorm, q_norm, k_norm, linear } = self;
        let norms = [Some(input_layernorm), Some(post_attention_layernorm), q_norm, k_norm];
        let layers = linear.into_array().into_iter().flat_map(BlockLinear::slots);
        let mut slots = norms.into_iter().chain(layers);
        std::array::from_fn(|_| slots.next().flatten())
    }
}

impl BlockParams<bool> {
    /// Whether it is so for any of the parameters.
    pub(crate) fn any(&self) -> bool {
        self.slots().contains(&Some(true))
    }
}

impl BlockLinear<bool> {
    /// Whether it is so for any of the layer's parameters.
    pub(crate) fn any(&self) -> bool {
        self.slots().contains(&Some(true))
    }
}
