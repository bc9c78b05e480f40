//! What the operations take and return besides single tensors.
//!
//! # Precision
//! One rule, followed by every body: the result of an operation has the type of its first operand, the activations.
//! Weights of another type (f32 adapters and projectors beside bf16 activations) are rounded to it first; weights of norms
//! are not, they are read as they are. Every gradient has the type of what it is the gradient of, so that of an f32 weight
//! is a sum in f32 that was never rounded to bf16. Softmax, statistics of norms and losses are computed in f32 (f64 for
//! f64 operands), and products of 16-bit operands are summed in f32.

use burn::tensor::{DType, backend::Backend, ops::FloatTensor};

use crate::dropout::Dropout;

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
    /// Lengths of sequences packed back to back in a single batch row (`b = 1`, `sq = sk` their sum): a query sees keys of
    /// its own sequence only. Excludes `key_lengths`.
    pub segments: Option<Vec<usize>>,
}

impl AttentionSpec {
    /// Causal attention without padding.
    pub fn causal() -> Self {
        Self { causal: true, ..Self::default() }
    }

    /// Causal attention within each of the sequences packed into one row.
    pub fn packed(lengths: Vec<usize>) -> Self {
        Self { causal: true, segments: Some(lengths), ..Self::default() }
    }

    /// How many leading keys query `i` of batch row `row` sees; segments apart.
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

/// Output of [`Backend::fused_rotary_attention`](crate::Backend::fused_rotary_attention), and what its backward pass starts from.
#[derive(Clone, Debug)]
pub struct RotaryAttentionOutput<B: Backend> {
    /// Queries, as they were given or rotated.
    pub q: FloatTensor<B>,
    /// Keys, as they were given or rotated.
    pub k: FloatTensor<B>,
    /// Whether `q` and `k` are rotated. A backend that rotates inside its attention keeps them as they were.
    pub rotated: bool,
    /// Output of the attention without the rotation.
    pub attention: AttentionOutput<B>,
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

/// What the backward pass of [`Backend::fused_linear`](crate::Backend::fused_linear) needs from the forward pass.
#[derive(Clone, Debug)]
pub struct LinearSaved<B: Backend> {
    /// The input; present when the gradient of the weight is wanted.
    pub x: Option<FloatTensor<B>>,
    /// `[d_in, d_out]`; present when the gradient of the input is wanted.
    pub weight: Option<FloatTensor<B>>,
    /// Type of the weight and of its gradient.
    pub weight_dtype: DType,
    /// Type of the bias; present when its gradient is wanted.
    pub bias_dtype: Option<DType>,
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

/// A low-rank adapter of a linear layer: adds `scale (dropout(x) a) b` to its output (Hu et al. 2021, eq. 3).
#[derive(Clone, Debug)]
pub struct LoraAdapter<B: Backend> {
    /// `[d_in, r]`.
    pub a: FloatTensor<B>,
    /// `[r, d_out]`.
    pub b: FloatTensor<B>,
    /// alpha / r.
    pub scale: f64,
    /// What the adapter's input goes through; as many keys as the input has rows.
    pub dropout: Option<Dropout<B>>,
}

/// Output of [`Backend::fused_lora_linear`](crate::Backend::fused_lora_linear).
#[derive(Clone, Debug)]
pub struct LoraLinearOutput<B: Backend> {
    /// `[.., d_out]`.
    pub output: FloatTensor<B>,
    /// `[rows, r]`: the input after dropout through `a`, kept for the backward pass.
    pub hidden: FloatTensor<B>,
    /// The input after dropout, where the backend had to write it down: worth keeping if there is memory for it.
    pub dropped: Option<FloatTensor<B>>,
}

/// What the backward pass of [`Backend::fused_lora_linear`](crate::Backend::fused_lora_linear) needs from the forward pass.
#[derive(Clone, Debug)]
pub struct LoraLinearSaved<B: Backend> {
    /// The input; present when the gradient of `weight` is wanted, or that of `a` and `dropped` is not there.
    pub x: Option<FloatTensor<B>>,
    /// The base weight; present when the gradient of `x` is wanted.
    pub weight: Option<FloatTensor<B>>,
    /// Type of the base weight and of its gradient.
    pub weight_dtype: DType,
    /// Type of the bias; present when its gradient is wanted.
    pub bias_dtype: Option<DType>,
    /// The adapter as it was applied.
    pub adapter: LoraAdapter<B>,
    /// Types of the gradients of the adapter's `a` and `b`; the factors themselves may have been rounded.
    pub adapter_dtypes: [DType; 2],
    /// The rank-r activation of the forward pass, `[rows, r]`.
    pub hidden: FloatTensor<B>,
    /// The input after dropout, if it was kept.
    pub dropped: Option<FloatTensor<B>>,
}

/// Gradients of [`Backend::fused_lora_linear`](crate::Backend::fused_lora_linear); `None` where not asked for.
#[derive(Clone, Debug)]
pub struct LoraLinearGrads<B: Backend> {
    /// Shape of the input.
    pub x: Option<FloatTensor<B>>,
    /// `[d_in, d_out]`.
    pub weight: Option<FloatTensor<B>>,
    /// `[d_out]`.
    pub bias: Option<FloatTensor<B>>,
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
    /// Gradient of the gate, in its shape.
    pub gate: Option<FloatTensor<B>>,
    /// Gradient of the other factor, in the gate's shape.
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

/// One parameter for [`Backend::fused_adamw`](crate::Backend::fused_adamw): four tensors of one shape.
#[derive(Clone, Debug)]
pub struct AdamWTensor<B: Backend> {
    /// The parameter, f32.
    pub param: FloatTensor<B>,
    /// Its gradient.
    pub grad: FloatTensor<B>,
    /// First moment, f32.
    pub m: FloatTensor<B>,
    /// Second moment, f32.
    pub v: FloatTensor<B>,
    /// Learning rate of this parameter.
    pub lr: f64,
    /// How often it was updated, this time included.
    pub updates: u64,
    /// Whether `updates` counts the update that [`AdamWGuard::before`] is about: if that one was skipped, this is the one
    /// before `updates`.
    pub undecided: bool,
}

/// What decides on the device whether [`Backend::fused_adamw`](crate::Backend::fused_adamw) changes anything.
#[derive(Clone, Debug)]
pub struct AdamWGuard<B: Backend> {
    /// Numbers that must be finite besides the norm of the gradients and what the update makes: `[n]`, f32.
    pub losses: Option<FloatTensor<B>>,
    /// [`AdamWOutput::applied`] of the update before, while the host does not know it yet.
    pub before: Option<FloatTensor<B>>,
}

impl<B: Backend> Default for AdamWGuard<B> {
    /// Nothing but gradients and update are looked at, and the update before is decided.
    fn default() -> Self {
        Self { losses: None, before: None }
    }
}

/// The constants of [`Backend::fused_adamw`](crate::Backend::fused_adamw).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamWConfig {
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Multiplies all gradients before anything else.
    pub grad_scale: f64,
    /// Longest norm of all gradients together; 0 or less: not clipped.
    pub max_grad_norm: f64,
}

impl AdamWConfig {
    /// `lr / (1 - beta1^t)` and `1 / sqrt(1 - beta2^t)`.
    pub fn corrections(&self, lr: f64, updates: u64) -> (f64, f64) {
        let t = updates.min(i32::MAX as u64) as i32;
        (lr / (1.0 - self.beta1.powi(t)), 1.0 / (1.0 - self.beta2.powi(t)).sqrt())
    }

    /// Whether no update at rate `lr` can make a finite parameter infinite, as long as the squares of the gradients add up
    /// to a finite f32. Then nothing but the norm needs looking at.
    ///
    /// `|m| / sqrt(v)` is at most `ratio` while `v` does not underflow (Cauchy-Schwarz); where it does, `|m|` is below
    /// `ratio * 1e-22` and `eps` divides. A step of at most 1e30 is lost in rounding beside the largest floats.
    pub fn keeps_finite(&self, lr: f64) -> bool {
        let Self { beta1, beta2, weight_decay, grad_scale, .. } = *self;
        let eps = f64::from(self.eps as f32);
        let decays = beta1 * beta1 < beta2 && beta2 < 1.0;
        let ratio = (1.0 - beta1) / ((1.0 - beta2) * (1.0 - beta1 * beta1 / beta2)).sqrt();
        let longest = lr / (1.0 - beta1) * ratio * f64::max(1.0, 1e-22 / eps);
        let keep = 1.0 - lr * weight_decay;
        let normal = eps >= f64::from(f32::MIN_POSITIVE);
        decays && normal && longest < 1e30 && keep.abs() <= 1.0 && grad_scale <= 1.0
    }
}

/// Output of [`Backend::fused_adamw`](crate::Backend::fused_adamw).
#[derive(Clone, Debug)]
pub struct AdamWOutput<B: Backend> {
    /// Parameter, first and second moment of each tensor, in the order of the input.
    pub updated: Vec<[FloatTensor<B>; 3]>,
    /// `[1]`, f32: the norm of all gradients after `grad_scale` and before clipping.
    pub norm: FloatTensor<B>,
    /// `[1]`, f32: 1 if the update was applied, 0 if something was not finite and `updated` is what came in, bit for bit.
    pub applied: FloatTensor<B>,
}

/// Waits for values that [`Backend::read_later`](crate::Backend::read_later) asked for; an error says why they did not come.
pub type ReadLater = Box<dyn FnOnce() -> Result<Vec<f32>, String> + Send>;

/// What [`Backend::memory`](crate::Backend::memory) tells, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceMemory {
    /// Free for new tensors: nobody has it, or the backend's pools hold it unused.
    pub free: u64,
    /// Taken from the device by this program and others, pools included. Pools keep what they took: in a program of its own
    /// this is the most it ever needed.
    pub taken: u64,
}
