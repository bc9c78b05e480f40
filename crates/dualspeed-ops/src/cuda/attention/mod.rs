//! Attention: `kernels/attention.cu` on tensor cores where it serves (short sequences: `kernels/attention_whole.cu`),
//! `kernels/attention_any.cu` elsewhere.

mod problem;

use burn::tensor::DType;

use self::problem::{Heads, Problem, Tables, device_lengths, rotary_arg, tables};
use super::cast::cast;
use super::element::Tensor;
use super::kernel::Arg;
use super::queue::submit;
use super::tensor::{contiguous, empty, empty_heads};
use crate::Backend;
use crate::types::*;

/// Rotation and attention in one kernel, and its gradients in another, where the sequences are short enough.
pub(super) fn rotary_attention<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    [cos, sin]: [&Tensor; 2],
    spec: &AttentionSpec,
) -> Option<AttentionOutput<B>> {
    let p = Problem::new(q, k, v, spec)?;
    let rows = p.whole(&q.device)?;
    let tables = tables(cos, sin, &p)?;
    Some(forward([q, k, v], spec, p, Some(rows), Some(tables)))
}

pub(super) fn attention<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
) -> Option<AttentionOutput<B>> {
    let p = Problem::new(q, k, v, spec)?;
    // With nothing to rotate, longer ones are faster in blocks of 128 queries.
    let rows = p.whole(&q.device).filter(|rows| *rows <= 96);
    Some(forward([q, k, v], spec, p, rows, None))
}

/// The gradients of [`rotary_attention`] for what it took.
pub(super) fn rotary_attention_backward<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    [cos, sin]: [&Tensor; 2],
    spec: &AttentionSpec,
    forward: &AttentionOutput<B>,
    grad: &Tensor,
) -> Option<AttentionGrads<B>> {
    let p = Problem::new(q, k, v, spec)?;
    let rows = p.whole(&q.device)?;
    let tables = tables(cos, sin, &p)?;
    Some(backward([q, k, v], spec, forward, grad, [true; 3], p, Some(rows), Some(tables)))
}

pub(super) fn attention_backward<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
    forward: &AttentionOutput<B>,
    grad: &Tensor,
    needs: [bool; 3],
) -> Option<AttentionGrads<B>> {
    let p = Problem::new(q, k, v, spec)?;
    let rows = p.whole(&q.device).filter(|_| needs == [true; 3]);
    Some(backward([q, k, v], spec, forward, grad, needs, p, rows, None))
}

/// `whole`: by a kernel for short sequences of so many rows, which rotates where there are tables.
fn forward<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
    p: Problem,
    whole: Option<usize>,
    tables: Option<Tables>,
) -> AttentionOutput<B> {
    let lengths = device_lengths(q, spec);
    let output = empty_heads(q, [p.b, p.hq, p.sq, p.d], q.dtype);
    let logsumexp = empty(q, &[p.b, p.hq, p.sq], DType::F32);
    let [q, k, v] = [q, k, v].map(|tensor| p.heads(tensor.clone()));
    let o = Heads::new(output.clone());
    let strides = [&q, &k, &v, &o].map(Heads::arg);
    let [cos, sin] = [tables.as_ref().map(|t| &t.0), tables.as_ref().map(|t| &t.1)];
    let step = tables.as_ref().map_or(0, |tables| tables.2);
    submit(
        [
            Some(&q.tensor),
            Some(&k.tensor),
            Some(&v.tensor),
            Some(&o.tensor),
            Some(&logsumexp),
            lengths.as_ref(),
            cos,
            sin,
        ],
        move |gpu, [q, k, v, o, lse, lengths, cos, sin]| {
            let mut args = [q, k, v, o, lse].map(Arg::Address).to_vec();
            args.extend(strides);
            args.push(p.shape(lengths));
            let Some(rows) = whole else {
                return p.launch(gpu, "forward", Some(0), [p.sq, p.hq], args);
            };
            args.push(rotary_arg([cos, sin], step));
            p.launch_whole(gpu, "forward", rows, 3, &args)
        },
    );
    AttentionOutput { output, logsumexp }
}

/// `whole` and `tables` as in [`forward`]; such a kernel writes all three gradients.
#[allow(clippy::too_many_arguments)]
fn backward<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
    forward: &AttentionOutput<B>,
    grad: &Tensor,
    [needs_q, needs_k, needs_v]: [bool; 3],
    p: Problem,
    whole: Option<usize>,
    tables: Option<Tables>,
) -> AttentionGrads<B> {
    let lengths = device_lengths(q, spec);
    let dq = needs_q.then(|| empty_heads(q, [p.b, p.hq, p.sq, p.d], q.dtype));
    // One kernel writes both.
    let keys = needs_k || needs_v;
    let [dk, dv] =
        [k, v].map(|like| keys.then(|| empty_heads(like, [p.b, p.hkv, p.sk, p.d], q.dtype)));
    // Kernels for short sequences need no memory for it.
    let delta = empty(q, &[if whole.is_some() { 1 } else { p.b * p.hq * p.sq }], DType::F32);
    let logsumexp = contiguous(forward.logsumexp.clone());
    let grad = cast(grad.clone(), q.dtype);
    let [q, k, v, o, g] = [q, k, v, &forward.output, &grad].map(|x| p.heads(x.clone()));
    let strides = [&q, &k, &v, &o, &g].map(Heads::arg);
    let grads = [&dq, &dk, &dv].map(|grad| grad.clone().map(Heads::new));
    let grad_strides = grads.each_ref().map(|grad| grad.as_ref().map(Heads::arg));
    let [dq_memory, dk_memory, dv_memory] =
        grads.each_ref().map(|grad| grad.as_ref().map(|grad| &grad.tensor));
    let [cos, sin] = [tables.as_ref().map(|t| &t.0), tables.as_ref().map(|t| &t.1)];
    let step = tables.as_ref().map_or(0, |tables| tables.2);
    submit(
        [
            Some(&q.tensor),
            Some(&k.tensor),
            Some(&v.tensor),
            Some(&o.tensor),
            Some(&g.tensor),
            Some(&logsumexp),
            Some(&delta),
            dq_memory,
            dk_memory,
            dv_memory,
            lengths.as_ref(),
            cos,
            sin,
        ],
        move |gpu, [q, k, v, o, g, lse, delta, dq, dk, dv, lengths, cos, sin]| {
            let shape = p.shape(lengths);
            if let ([Some(dq_steps), Some(dk_steps), Some(dv_steps)], Some(rows)) =
                (&grad_strides, whole)
            {
                let mut args = [q, k, v, o, g, lse, dq, dk, dv].map(Arg::Address).to_vec();
                args.extend(strides);
                args.extend([dq_steps, dk_steps, dv_steps].map(Arg::clone));
                args.extend([shape, rotary_arg([cos, sin], step)]);
                return p.launch_whole(gpu, "backward", rows, 4, &args);
            }
            let [q_steps, k_steps, v_steps, o_steps, g_steps] = strides;
            let [dq_steps, dk_steps, dv_steps] = grad_strides;
            let mut args = [o, g, delta].map(Arg::Address).to_vec();
            args.extend([o_steps, g_steps.clone(), shape.clone()]);
            p.launch(gpu, "delta", None, [p.sq, p.hq], args)?;
            let inputs = [q, k, v, g, lse, delta].map(Arg::Address);
            let steps = [q_steps, k_steps, v_steps, g_steps];
            if let (Some(dk_steps), Some(dv_steps)) = (dk_steps, dv_steps) {
                let mut args = inputs.to_vec();
                args.extend([dk, dv].map(Arg::Address));
                args.extend(steps.clone());
                args.extend([dk_steps, dv_steps, shape.clone()]);
                p.launch(gpu, "backward_dkv", Some(1), [p.sk, p.hkv], args)?;
            }
            if let Some(dq_steps) = dq_steps {
                let mut args = inputs.to_vec();
                args.push(Arg::Address(dq));
                args.extend(steps);
                args.extend([dq_steps, shape]);
                p.launch(gpu, "backward_dq", Some(2), [p.sq, p.hq], args)?;
            }
            Ok(())
        },
    );
    AttentionGrads { q: dq, k: dk.filter(|_| needs_k), v: dv.filter(|_| needs_v) }
}
