//! What the operations take and return besides single tensors.

use burn::tensor::{backend::Backend, ops::FloatTensor};

/// Which query may see which key.
///
/// Query `i` of `sq` sits at absolute position `sk - sq + i` of the `sk` keys, so that the same spec serves training
/// (`sq == sk`) and decoding with a KV cache (`sq < sk`). A query without any visible key yields zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttentionSpec {
    /// A query sees keys at its own position and before it only.
    pub causal: bool,
    /// Per batch row, how many leading keys are real; the rest is right padding. `None`: all of them.
    pub key_lengths: Option<Vec<usize>>,
}

impl AttentionSpec {
    /// Causal attention without padding.
    pub fn causal() -> Self {
        Self { causal: true, key_lengths: None }
    }

    /// How many leading keys query `i` of batch row `row` sees.
    pub fn visible_keys(&self, row: usize, i: usize, sq: usize, sk: usize) -> usize {
        let length = match &self.key_lengths {
            Some(lengths) => lengths.get(row).map_or(sk, |length| (*length).min(sk)),
            None => sk,
        };
        if self.causal { length.min((sk + i + 1).saturating_sub(sq)) } else { length }
    }
}

/// Output of [`Backend::fused_attention`](crate::Backend::fused_attention).
#[derive(Clone, Debug)]
pub struct AttentionOutput<B: Backend> {
    /// `[b, hq, sq, d]`, dtype of the queries.
    pub output: FloatTensor<B>,
    /// `[b, hq, sq]`, at least f32: log of the softmax denominator of each row, which the backward pass starts from.
    pub logsumexp: FloatTensor<B>,
}

/// Gradients of [`Backend::fused_attention`](crate::Backend::fused_attention); `None` where not asked for.
#[derive(Clone, Debug)]
pub struct AttentionGrads<B: Backend> {
    /// Shape of the queries.
    pub q: Option<FloatTensor<B>>,
    /// Shape of the keys.
    pub k: Option<FloatTensor<B>>,
    /// Shape of the values.
    pub v: Option<FloatTensor<B>>,
}

/// Gradients of [`Backend::fused_linear`](crate::Backend::fused_linear); `None` where not asked for.
#[derive(Clone, Debug)]
pub struct LinearGrads<B: Backend> {
    /// Shape of the input.
    pub x: Option<FloatTensor<B>>,
    /// `[d_in, d_out]`.
    pub weight: Option<FloatTensor<B>>,
    /// `[d_out]`.
    pub bias: Option<FloatTensor<B>>,
}

/// Output of [`Backend::fused_lora_linear`](crate::Backend::fused_lora_linear).
#[derive(Clone, Debug)]
pub struct LoraLinearOutput<B: Backend> {
    /// `[.., d_out]`.
    pub output: FloatTensor<B>,
    /// `[rows, r]`: the (masked) input through `a`, kept for the backward pass.
    pub hidden: FloatTensor<B>,
}

/// What the backward pass of [`Backend::fused_lora_linear`](crate::Backend::fused_lora_linear) needs from the forward pass.
#[derive(Clone, Debug)]
pub struct LoraLinearSaved<B: Backend> {
    /// The input; present when the gradient of `weight` or `a` is wanted.
    pub x: Option<FloatTensor<B>>,
    /// The base weight; present when the gradient of `x` is wanted.
    pub weight: Option<FloatTensor<B>>,
    /// `[d_in, r]`.
    pub a: FloatTensor<B>,
    /// `[r, d_out]`.
    pub b: FloatTensor<B>,
    /// `[rows, r]`, from [`LoraLinearOutput`].
    pub hidden: FloatTensor<B>,
    /// Shape of the input.
    pub dropout_mask: Option<FloatTensor<B>>,
    /// The LoRA scale, alpha / r.
    pub scale: f64,
}

/// Gradients of [`Backend::fused_lora_linear`](crate::Backend::fused_lora_linear); `None` where not asked for.
#[derive(Clone, Debug)]
pub struct LoraLinearGrads<B: Backend> {
    /// Shape of the input.
    pub x: Option<FloatTensor<B>>,
    /// `[d_in, d_out]`.
    pub weight: Option<FloatTensor<B>>,
    /// `[d_in, r]`.
    pub a: Option<FloatTensor<B>>,
    /// `[r, d_out]`.
    pub b: Option<FloatTensor<B>>,
}

/// Gradients of the norms; `None` where not asked for (`bias` of RMSNorm always).
#[derive(Clone, Debug)]
pub struct NormGrads<B: Backend> {
    /// Shape of the input.
    pub x: Option<FloatTensor<B>>,
    /// `[d]`.
    pub weight: Option<FloatTensor<B>>,
    /// `[d]`.
    pub bias: Option<FloatTensor<B>>,
}

/// Gradients of [`Backend::fused_swiglu`](crate::Backend::fused_swiglu); `None` where not asked for.
#[derive(Clone, Debug)]
pub struct SwigluGrads<B: Backend> {
    /// Shape of the gate.
    pub gate: Option<FloatTensor<B>>,
    /// Shape of the gate.
    pub up: Option<FloatTensor<B>>,
}

/// Gradients of [`Backend::fused_token_losses`](crate::Backend::fused_token_losses); `None` where not asked for.
#[derive(Clone, Debug)]
pub struct TokenLossesGrads<B: Backend> {
    /// `[n, d]`.
    pub hidden: Option<FloatTensor<B>>,
    /// `[d, vocab]`.
    pub lm_head: Option<FloatTensor<B>>,
}
