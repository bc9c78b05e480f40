//! The operations on tensors: what model code calls.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{Int, Tensor, TensorPrimitive};

use crate::{AttentionSpec, Backend, BlockCache, BlockContext, BlockParams, Dropout, LoraAdapter};

fn wrap<B: Backend, const D: usize>(primitive: B::FloatTensorPrimitive) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

fn unwrap<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> B::FloatTensorPrimitive {
    tensor.into_primitive().tensor()
}

/// `x W + bias`.
///
/// # Shapes
/// `x` `[.., d_in]`, `weight` `[d_in, d_out]` (Burn's layout), `bias` `[d_out]` -> `[.., d_out]`.
pub fn linear<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
) -> Tensor<B, D> {
    wrap(B::fused_linear(unwrap(x), unwrap(weight), bias.map(unwrap)))
}

/// `residual + x W + bias`: a linear layer onto a residual stream.
///
/// # Shapes
/// `x` `[.., d_in]`, `weight` `[d_in, d_out]`, `bias` `[d_out]`, `residual` `[.., d_out]` -> `[.., d_out]`.
pub fn linear_add<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    residual: Tensor<B, D>,
) -> Tensor<B, D> {
    wrap(B::fused_linear_add(unwrap(x), unwrap(weight), bias.map(unwrap), unwrap(residual)))
}

/// A linear layer with a low-rank update: `x W + bias + scale (dropout(x) A) B` (Hu et al. 2021, eq. 3).
///
/// Dropout acts on the low-rank branch only; it has as many keys as `x` has rows.
///
/// # Shapes
/// `x` `[.., d_in]`, `weight` `[d_in, d_out]`, `bias` `[d_out]`, `a` `[d_in, r]`, `b` `[r, d_out]` -> `[.., d_out]`.
pub fn lora_linear<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 2>,
    bias: Option<Tensor<B, 1>>,
    a: Tensor<B, 2>,
    b: Tensor<B, 2>,
    scale: f64,
    dropout: Option<Dropout<B>>,
) -> Tensor<B, D> {
    let [weight, a, b] = [weight, a, b].map(unwrap);
    let adapter = LoraAdapter { a, b, scale, dropout };
    wrap(B::fused_lora_linear(unwrap(x), weight, bias.map(unwrap), adapter).output)
}

/// RMSNorm over the last dimension (Zhang & Sennrich 2019), as in Llama: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// # Shapes
/// `x` `[.., d]`, `weight` `[d]` -> `[.., d]`.
pub fn rms_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    wrap(B::fused_rms_norm(unwrap(x), unwrap(weight), eps))
}

/// LayerNorm over the last dimension with the biased variance.
///
/// # Shapes
/// `x` `[.., d]`, `weight` `[d]`, `bias` `[d]` -> `[.., d]`.
pub fn layer_norm<B: Backend, const D: usize>(
    x: Tensor<B, D>,
    weight: Tensor<B, 1>,
    bias: Tensor<B, 1>,
    eps: f64,
) -> Tensor<B, D> {
    wrap(B::fused_layer_norm(unwrap(x), unwrap(weight), unwrap(bias), eps))
}

/// GELU in its erf form, elementwise.
pub fn gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    wrap(B::fused_gelu(unwrap(x)))
}

/// `x sigmoid(1.702 x)`, elementwise: the activation of OpenAI's CLIP.
pub fn quick_gelu<B: Backend, const D: usize>(x: Tensor<B, D>) -> Tensor<B, D> {
    wrap(B::fused_quick_gelu(unwrap(x)))
}

/// `silu(gate) * up`, elementwise (Shazeer 2020).
///
/// # Shapes
/// Both operands and the result have the same shape.
pub fn swiglu<B: Backend, const D: usize>(gate: Tensor<B, D>, up: Tensor<B, D>) -> Tensor<B, D> {
    wrap(B::fused_swiglu(unwrap(gate), unwrap(up)))
}

/// Rotary position embedding with the halves of a head paired (the convention of Hugging Face's Llama).
///
/// # Shapes
/// `x` `[b, h, s, d]`, `cos` and `sin` `[1 or b, s, d/2]` -> `[b, h, s, d]`.
pub fn rope<B: Backend>(x: Tensor<B, 4>, cos: Tensor<B, 3>, sin: Tensor<B, 3>) -> Tensor<B, 4> {
    wrap(B::fused_rope(unwrap(x), unwrap(cos), unwrap(sin)))
}

/// Scaled dot-product attention, `softmax(q k^T / sqrt(d)) v`, with grouped queries.
///
/// Neither forward nor backward keeps an `[sq, sk]` matrix. With permuted views of `[b, s, h, d]` tensors no copy
/// is made on the CPU, and the result is such a view again.
///
/// # Shapes
/// `q` `[b, hq, sq, d]`, `k` and `v` `[b, hkv, sk, d]` with `hq` a multiple of `hkv` -> `[b, hq, sq, d]`.
///
/// # Panics
/// When `hq` is no multiple of `hkv`, `key_lengths` has not `b` entries, or `segments` do not fill one row.
pub fn attention<B: Backend>(
    q: Tensor<B, 4>,
    k: Tensor<B, 4>,
    v: Tensor<B, 4>,
    spec: &AttentionSpec,
) -> Tensor<B, 4> {
    let ([batch, heads, ..], [_, kv_heads, ..]) = (q.dims(), k.dims());
    assert!(
        kv_heads > 0 && heads % kv_heads == 0,
        "attention: {heads} query heads cannot share {kv_heads} key heads evenly"
    );
    if let Some(lengths) = &spec.key_lengths {
        let rows = lengths.len();
        assert_eq!(rows, batch, "attention: {rows} key lengths for a batch of {batch}");
    }
    if let Some(segments) = &spec.segments {
        let (total, [_, _, length, _], [_, _, keys, _]) =
            (segments.iter().sum::<usize>(), q.dims(), k.dims());
        assert!(
            batch == 1 && total == length && total == keys && spec.key_lengths.is_none(),
            "attention: segments of {total} positions for a batch of {batch} x {length} queries and {keys} keys; one row, as \
             long as its segments, and no key lengths are needed"
        );
    }
    wrap(B::fused_attention(unwrap(q), unwrap(k), unwrap(v), spec).output)
}

/// `x` with some elements set to zero and the others divided by `1 - p`.
///
/// # Shapes
/// `x` `[.., d]` with as many rows as keys -> the same.
pub fn dropout<B: Backend, const D: usize>(x: Tensor<B, D>, dropout: &Dropout<B>) -> Tensor<B, D> {
    wrap(B::fused_dropout(unwrap(x), dropout, None))
}

/// Rows of a matrix, each any number of times.
///
/// # Shapes
/// `x` `[n, d]`, `ids` `[m]` with entries below `n` -> `[m, d]`.
pub fn select_rows<B: Backend>(x: Tensor<B, 2>, ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
    wrap(B::fused_select_rows(unwrap(x), ids.into_primitive()))
}

/// A decoder block (norm, attention, norm, SwiGLU MLP, two residual sums) as one operation.
///
/// With gradients it is one node, whose backward keeps what [`Keep`](crate::Keep) says and computes the rest again. With a
/// cache the queries see what is in it before the new positions, which are appended; the result is a constant then, also
/// where parameters are tracked.
///
/// # Shapes
/// `x` `[batch * seq, d]`, `seq` the new positions; parameters as [`BlockParams`] says -> `[batch * seq, d]`, or
/// `[wanted, d]` with [`rows`](BlockContext::rows).
///
/// # Panics
/// When a wanted row is beyond `batch * seq` and there is dropout.
pub fn decoder_block<B: Backend>(
    x: Tensor<B, 2>,
    params: BlockParams<B::FloatTensorPrimitive>,
    ctx: &BlockContext<B>,
    cache: Option<&mut BlockCache<B>>,
) -> Tensor<B, 2> {
    wrap(B::fused_decoder_block(unwrap(x), params, ctx, cache))
}

/// Losses of every supervised token at once, from hidden states: logits exist for one chunk of rows at a time.
///
/// Column 0: cross entropy with `targets`. Column 1: `tau^2 KL(teacher || student)` at temperature `tau`, both
/// sides through the same `lm_head`, the teacher a constant; 0 without a teacher. Column 2: 1 where the arg max is
/// the target (lowest index wins ties), else 0; no gradient.
///
/// # Shapes
/// `hidden` `[n, d]`, `lm_head` `[d, vocab]`, `targets` `[n]` in `0..vocab`, `teacher` `[n, d]` -> `[n, 3]` in f32
/// (f64 for f64).
pub fn token_losses<B: Backend>(
    hidden: Tensor<B, 2>,
    lm_head: Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    teacher: Option<Tensor<B, 2>>,
    tau: f64,
) -> Tensor<B, 2> {
    let (hidden, lm_head) = (unwrap(hidden), unwrap(lm_head));
    wrap(B::fused_token_losses(hidden, lm_head, targets.into_primitive(), teacher.map(unwrap), tau))
}

/// Max-min diverse subset per image: the selection of DivPrune (Alvar et al. 2025).
///
/// With `D = 1 - cosine`: first the row whose nearest other row is farthest; then, again and again, the row
/// farthest from all picked so far. f32 throughout, the lowest index wins ties, rows of zeros and NaN sit at
/// distance 1 and 0. No gradient.
///
/// # Shapes
/// `features` `[b, n, d]` -> `[b, keep]`, in the order of picking.
///
/// # Panics
/// When `keep > n`.
pub fn farthest_points<B: Backend>(features: Tensor<B, 3>, keep: usize) -> Tensor<B, 2, Int> {
    let [_, n, _] = features.dims();
    assert!(keep <= n, "farthest_points: cannot keep {keep} of {n} rows");
    Tensor::from_primitive(B::fused_farthest_points(unwrap(features), keep))
}

/// Greedy MAP inference of a determinantal point process per image (Chen et al. 2018, algorithm 1): the selection of
/// CDPruner (Zhang et al. 2025).
///
/// With the kernel `L = F F^T`: again and again the row that adds most to the log-determinant of the picked rows'
/// kernel, that is the row with the largest residual `d2_i` after projecting out the picked rows. f32 throughout, the
/// lowest index wins ties. A residual below `1e-6 L_ii` counts as 0: past the rank of `F` the remaining rows follow in
/// index order (the published code takes roots of negative rounding errors there). Rows with NaN come last. No
/// gradient.
///
/// # Shapes
/// `features` `[b, n, d]` -> `[b, keep]`, in the order of picking.
///
/// # Panics
/// When `keep > n`.
pub fn greedy_map<B: Backend>(features: Tensor<B, 3>, keep: usize) -> Tensor<B, 2, Int> {
    let [_, n, _] = features.dims();
    assert!(keep <= n, "greedy_map: cannot keep {keep} of {n} rows");
    Tensor::from_primitive(B::fused_greedy_map(unwrap(features), keep))
}

/// The values of a tensor on the host as f32, row-major.
pub fn to_f32<B: BurnBackend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f32> {
    let data = tensor.into_data().convert::<f32>();
    // `convert` made it f32, which is what `into_vec` asks for.
    data.into_vec::<f32>().unwrap_or_default()
}
