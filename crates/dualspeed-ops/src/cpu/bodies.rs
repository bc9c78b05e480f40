//! From primitives to kernels and back. What is not f32 takes the plain body.

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, TensorData, get_device_settings, try_read_sync};

use super::gemm::Mat;
use super::linear::{
    add_in_place, add_product, column_sum, forward, product, times, times_in_place,
};
use super::norm::{self, Norm};
use super::view::{Host, View, views};
use super::{activation, attention, greedy_map, losses, points, rope};
use crate::dropout::mask;
use crate::plain;
use crate::types::*;

fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(dim) = shape.last_mut() {
        *dim = last;
    }
    shape
}

pub(super) fn linear<B: Host>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let (Some([xs, ws]), Some(bs)) = (views::<B, 2>([&x, &weight]), optional::<B>(&bias)) else {
        return plain::linear::<B>(x, weight, bias);
    };
    let (m, k, n) = (xs.rows(), xs.last(), ws.shape[1]);
    let data = xs.contiguous();
    let bias = bs.as_ref().map(View::contiguous);
    let y = forward(Mat::new(&data, m, k), ws.mat(), m, n, bias.as_deref());
    B::make(y, &with_last(&xs.shape, n))
}

/// `None` when present but not readable.
fn optional<B: Host>(tensor: &Option<FloatTensor<B>>) -> Option<Option<View<'_>>> {
    match tensor {
        Some(tensor) => B::view(tensor).map(Some),
        None => Some(None),
    }
}

pub(super) fn linear_backward<B: Host>(
    saved: LinearSaved<B>,
    grad: FloatTensor<B>,
) -> LinearGrads<B> {
    let wide = [Some(saved.weight_dtype), saved.bias_dtype].into_iter().flatten();
    let (Some(xs), Some(ws), Some(gs), true) = (
        optional::<B>(&saved.x),
        optional::<B>(&saved.weight),
        B::view(&grad),
        wide.into_iter().all(|dtype| dtype == DType::F32),
    ) else {
        return plain::linear_backward::<B>(saved, grad);
    };
    let (m, n, data) = (gs.rows(), gs.last(), gs.contiguous());
    let g = Mat::new(&data, m, n);
    LinearGrads {
        x: ws.map(|ws| {
            let k = ws.shape[0];
            B::make(product(g, ws.mat().t(), m, k, 1.0), &with_last(&gs.shape, k))
        }),
        weight: xs.map(|xs| {
            let (k, x) = (xs.last(), xs.contiguous());
            B::make(product(Mat::new(&x, m, k).t(), g, k, n, 1.0), &[k, n])
        }),
        bias: saved.bias_dtype.map(|_| B::make(column_sum(&data, n), &[n])),
    }
}

pub(super) fn lora_linear<B: Host>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    adapter: LoraAdapter<B>,
) -> LoraLinearOutput<B> {
    let (Some([xs, ws, la, lb]), Some(bs)) =
        (views::<B, 4>([&x, &weight, &adapter.a, &adapter.b]), optional::<B>(&bias))
    else {
        return plain::lora_linear::<B>(x, weight, bias, adapter);
    };
    let bias = bs.as_ref().map(View::contiguous);
    let (m, k, n, r) = (xs.rows(), xs.last(), ws.shape[1], la.shape[1]);
    let data = xs.contiguous();
    let masked = adapter.dropout.as_ref().map(|dropout| times(&data, &mask(dropout, k)));
    let input = masked.as_deref().unwrap_or(&data);
    let hidden = product(Mat::new(input, m, k), la.mat(), m, r, 1.0);
    let mut y = forward(Mat::new(&data, m, k), ws.mat(), m, n, bias.as_deref());
    add_product(&mut y, Mat::new(&hidden, m, r), lb.mat(), m, n, adapter.scale as f32);
    LoraLinearOutput {
        output: B::make(y, &with_last(&xs.shape, n)),
        hidden: B::make(hidden, &[m, r]),
        dropped: None,
    }
}

pub(super) fn lora_linear_backward<B: Host>(
    saved: LoraLinearSaved<B>,
    grad: FloatTensor<B>,
    needs: [bool; 4],
) -> LoraLinearGrads<B> {
    let wide = [Some(saved.weight_dtype), saved.bias_dtype].into_iter().flatten();
    let (Some([la, lb, hidden, gs]), Some(xs), Some(kept), Some(ws), true) = (
        views::<B, 4>([&saved.adapter.a, &saved.adapter.b, &saved.hidden, &grad]),
        optional::<B>(&saved.x),
        optional::<B>(&saved.dropped),
        optional::<B>(&saved.weight),
        wide.into_iter().all(|dtype| dtype == DType::F32),
    ) else {
        return plain::lora_linear_backward::<B>(saved, grad, needs);
    };
    let [needs_x, needs_weight, needs_a, needs_b] = needs;
    let (m, n, [k, r]) = (gs.rows(), gs.last(), [la.shape[0], la.shape[1]]);
    let (data, scale) = (gs.contiguous(), saved.adapter.scale as f32);
    let (g, mask) = (Mat::new(&data, m, n), saved.adapter.dropout.as_ref().map(|d| mask(d, k)));
    let x = xs.as_ref().map(View::contiguous);
    let grad_hidden = (needs_x || needs_a).then(|| product(g, lb.mat().t(), m, r, scale));

    let grad_x = match (needs_x, ws, &grad_hidden) {
        (true, Some(ws), Some(grad_hidden)) => {
            let grad_hidden = Mat::new(grad_hidden, m, r);
            let mut dx = product(g, ws.mat().t(), m, k, 1.0);
            match &mask {
                None => add_product(&mut dx, grad_hidden, la.mat().t(), m, k, 1.0),
                Some(mask) => {
                    let mut low_rank = product(grad_hidden, la.mat().t(), m, k, 1.0);
                    times_in_place(&mut low_rank, mask);
                    add_in_place(&mut dx, &low_rank);
                }
            }
            Some(B::make(dx, &with_last(&gs.shape, k)))
        }
        _ => None,
    };
    let masked = match (&kept, &x, &mask) {
        (None, Some(x), Some(mask)) if needs_a => Some(times(x, mask)),
        _ => None,
    };
    let kept = kept.as_ref().map(View::contiguous);
    let low_rank_input = kept.as_deref().or(masked.as_deref()).or(x.as_deref());
    let grad_a = match (needs_a, low_rank_input, &grad_hidden) {
        (true, Some(input), Some(grad_hidden)) => {
            let dst = product(Mat::new(input, m, k).t(), Mat::new(grad_hidden, m, r), k, r, 1.0);
            Some(B::make(dst, &[k, r]))
        }
        _ => None,
    };
    let grad_b = needs_b.then(|| {
        let hidden = hidden.contiguous();
        B::make(product(Mat::new(&hidden, m, r).t(), g, r, n, scale), &[r, n])
    });
    let grad_weight = match (needs_weight, &x) {
        (true, Some(x)) => Some(B::make(product(Mat::new(x, m, k).t(), g, k, n, 1.0), &[k, n])),
        _ => None,
    };
    let grad_bias = saved.bias_dtype.map(|_| B::make(column_sum(&data, n), &[n]));
    LoraLinearGrads { x: grad_x, weight: grad_weight, bias: grad_bias, a: grad_a, b: grad_b }
}

pub(super) fn rms_norm<B: Host>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let Some([xs, ws]) = views::<B, 2>([&x, &weight]) else {
        return plain::rms_norm::<B>(x, weight, eps);
    };
    let y = norm::forward(&xs.contiguous(), &ws.contiguous(), None, eps, Norm::Rms);
    B::make(y, &xs.shape)
}

pub(super) fn layer_norm<B: Host>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: FloatTensor<B>,
    eps: f64,
) -> FloatTensor<B> {
    let Some([xs, ws, bs]) = views::<B, 3>([&x, &weight, &bias]) else {
        return plain::layer_norm::<B>(x, weight, bias, eps);
    };
    let bias = bs.contiguous();
    let y = norm::forward(&xs.contiguous(), &ws.contiguous(), Some(&bias), eps, Norm::Layer);
    B::make(y, &xs.shape)
}

fn norm_backward<B: Host>(
    [xs, ws, gs]: [View<'_>; 3],
    eps: f64,
    kind: Norm,
    [needs_x, needs_weight, needs_bias]: [bool; 3],
) -> NormGrads<B> {
    let (x, weight, grad, d) = (xs.contiguous(), ws.contiguous(), gs.contiguous(), xs.last());
    let grad_x =
        needs_x.then(|| B::make(norm::backward_x(&x, &weight, &grad, eps, kind), &xs.shape));
    let sums = (needs_weight || needs_bias).then(|| norm::backward_weight(&x, &grad, d, eps, kind));
    let (weight, bias) = sums.unzip();
    NormGrads {
        x: grad_x,
        weight: weight.filter(|_| needs_weight).map(|sum| B::make(sum, &[d])),
        bias: bias.filter(|_| needs_bias).map(|sum| B::make(sum, &[d])),
    }
}

pub(super) fn rms_norm_backward<B: Host>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
    grad: FloatTensor<B>,
    needs: [bool; 2],
) -> NormGrads<B> {
    match views::<B, 3>([&x, &weight, &grad]) {
        Some(views) => norm_backward::<B>(views, eps, Norm::Rms, [needs[0], needs[1], false]),
        None => plain::rms_norm_backward::<B>(x, weight, eps, grad, needs),
    }
}

pub(super) fn layer_norm_backward<B: Host>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    eps: f64,
    grad: FloatTensor<B>,
    needs: [bool; 3],
) -> NormGrads<B> {
    match views::<B, 3>([&x, &weight, &grad]) {
        Some(views) => norm_backward::<B>(views, eps, Norm::Layer, needs),
        None => plain::layer_norm_backward::<B>(x, weight, eps, grad, needs),
    }
}

macro_rules! elementwise {
    ($name:ident($($arg:ident),+)) => {
        pub(super) fn $name<B: Host>($($arg: FloatTensor<B>),+) -> FloatTensor<B> {
            match views::<B, { [$(stringify!($arg)),+].len() }>([$(&$arg),+]) {
                Some([$($arg),+]) => {
                    B::make(activation::$name($(&$arg.contiguous()),+), first_shape(&[$(&$arg),+]))
                }
                None => plain::$name::<B>($($arg),+),
            }
        }
    };
}

fn first_shape<'a>(views: &[&'a View<'_>]) -> &'a [usize] {
    views.first().map_or(&[], |view| &view.shape)
}

elementwise!(gelu(x));
elementwise!(gelu_backward(x, grad));
elementwise!(quick_gelu(x));
elementwise!(quick_gelu_backward(x, grad));
elementwise!(swiglu(gate, up));

pub(super) fn swiglu_backward<B: Host>(
    gate: FloatTensor<B>,
    up: FloatTensor<B>,
    grad: FloatTensor<B>,
    needs: [bool; 2],
) -> SwigluGrads<B> {
    let Some([gates, ups, grads]) = views::<B, 3>([&gate, &up, &grad]) else {
        return plain::swiglu_backward::<B>(gate, up, grad, needs);
    };
    let [needs_gate, needs_up] = needs;
    let (gate, grad) = (gates.contiguous(), grads.contiguous());
    SwigluGrads {
        gate: needs_gate.then(|| {
            let data = activation::swiglu_backward_gate(&gate, &ups.contiguous(), &grad);
            B::make(data, &gates.shape)
        }),
        up: needs_up.then(|| B::make(activation::swiglu(&gate, &grad), &gates.shape)),
    }
}

/// `[b, s, h, d]` in memory, seen as `[b, h, s, d]`.
fn make_heads<B: Host>(data: Vec<f32>, [b, h, s, d]: [usize; 4]) -> FloatTensor<B> {
    B::float_swap_dims(B::make(data, &[b, s, h, d]), 1, 2)
}

pub(super) fn rope<B: Host>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    direction: f32,
) -> FloatTensor<B> {
    let Some([xs, coss, sins]) = views::<B, 3>([&x, &cos, &sin]) else {
        let sin = if direction < 0.0 { B::float_neg(sin) } else { sin };
        return plain::rope::<B>(x, cos, sin);
    };
    let x = xs.into_heads();
    let data = rope::rope(&x, &coss.contiguous(), &sins.contiguous(), direction);
    make_heads::<B>(data, [x.batch, x.heads, x.len, x.dim])
}

pub(super) fn attention<B: Host>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spec: &AttentionSpec,
) -> AttentionOutput<B> {
    // Packed sequences are the plain body's.
    let views = views::<B, 3>([&q, &k, &v]).filter(|_| spec.segments.is_none());
    let Some(views) = views else {
        return plain::attention::<B>(q, k, v, spec);
    };
    let [q, k, v] = views.map(View::into_heads);
    let (output, logsumexp) = attention::forward(&q, &k, &v, spec);
    AttentionOutput {
        output: make_heads::<B>(output, [q.batch, q.heads, q.len, q.dim]),
        logsumexp: B::make(logsumexp, &[q.batch, q.heads, q.len]),
    }
}

pub(super) fn attention_backward<B: Host>(
    q: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    spec: &AttentionSpec,
    forward: AttentionOutput<B>,
    grad: FloatTensor<B>,
    needs: [bool; 3],
) -> AttentionGrads<B> {
    let tensors = [&q, &k, &v, &forward.output, &grad];
    let views = views::<B, 5>(tensors).filter(|_| spec.segments.is_none());
    let (Some(views), Some(logsumexp)) = (views, B::view(&forward.logsumexp)) else {
        return plain::attention_backward::<B>(q, k, v, spec, forward, grad, needs);
    };
    let [q, k, v, output, grad] = views.map(View::into_heads);
    let logsumexp = logsumexp.contiguous();
    let [grad_q, grad_k, grad_v] =
        attention::backward([&q, &k, &v], spec, [&output, &grad], &logsumexp, needs);
    let keys = [k.batch, k.heads, k.len, k.dim];
    AttentionGrads {
        q: grad_q.map(|data| make_heads::<B>(data, [q.batch, q.heads, q.len, q.dim])),
        k: grad_k.map(|data| make_heads::<B>(data, keys)),
        v: grad_v.map(|data| make_heads::<B>(data, keys)),
    }
}

/// The targets on the host.
fn indices<B: Host>(targets: &IntTensor<B>) -> Option<Vec<i64>> {
    let data = try_read_sync(B::int_into_data(targets.clone()))?.ok()?;
    Some(data.iter::<i64>().collect())
}

pub(super) fn token_losses<B: Host>(
    hidden: FloatTensor<B>,
    lm_head: FloatTensor<B>,
    targets: IntTensor<B>,
    teacher: Option<FloatTensor<B>>,
    tau: f64,
) -> FloatTensor<B> {
    let (Some([xs, ws]), Some(ts), Some(ids)) =
        (views::<B, 2>([&hidden, &lm_head]), optional::<B>(&teacher), indices::<B>(&targets))
    else {
        return plain::token_losses::<B>(hidden, lm_head, targets, teacher, tau);
    };
    let teacher = ts.as_ref().map(View::contiguous);
    let inputs = losses::Inputs {
        hidden: &xs.contiguous(),
        lm_head: ws.mat(),
        targets: &ids,
        teacher: teacher.as_deref(),
        tau: tau as f32,
        d: xs.shape[1],
        vocab: ws.shape[1],
    };
    B::make(inputs.forward(), &[ids.len(), 3])
}

pub(super) fn token_losses_backward<B: Host>(
    hidden: FloatTensor<B>,
    lm_head: FloatTensor<B>,
    targets: IntTensor<B>,
    teacher: Option<FloatTensor<B>>,
    tau: f64,
    grad: FloatTensor<B>,
    needs: [bool; 2],
) -> TokenLossesGrads<B> {
    let (Some([xs, ws, gs]), Some(ts), Some(ids)) = (
        views::<B, 3>([&hidden, &lm_head, &grad]),
        optional::<B>(&teacher),
        indices::<B>(&targets),
    ) else {
        return plain::token_losses_backward::<B>(
            hidden, lm_head, targets, teacher, tau, grad, needs,
        );
    };
    let teacher = ts.as_ref().map(View::contiguous);
    let inputs = losses::Inputs {
        hidden: &xs.contiguous(),
        lm_head: ws.mat(),
        targets: &ids,
        teacher: teacher.as_deref(),
        tau: tau as f32,
        d: xs.shape[1],
        vocab: ws.shape[1],
    };
    let [grad_hidden, grad_lm_head] = inputs.backward(&gs.contiguous(), needs);
    TokenLossesGrads {
        hidden: grad_hidden.map(|data| B::make(data, &xs.shape)),
        lm_head: grad_lm_head.map(|data| B::make(data, &ws.shape)),
    }
}

pub(super) fn farthest_points<B: Host>(features: FloatTensor<B>, keep: usize) -> IntTensor<B> {
    match picks::<B>(&features, keep, points::farthest_points) {
        Some(picks) => picks,
        None => plain::farthest_points::<B>(features, keep),
    }
}

pub(super) fn greedy_map<B: Host>(features: FloatTensor<B>, keep: usize) -> IntTensor<B> {
    match picks::<B>(&features, keep, greedy_map::greedy_map) {
        Some(picks) => picks,
        None => plain::greedy_map::<B>(features, keep),
    }
}

/// `[b, keep]` indices that `kernel` picks from `[b, n, d]`.
fn picks<B: Host>(
    features: &FloatTensor<B>,
    keep: usize,
    kernel: fn(&[f32], [usize; 3], usize) -> Vec<i64>,
) -> Option<IntTensor<B>> {
    let view = B::view(features)?;
    let shape = [view.shape[0], view.shape[1], view.shape[2]];
    let device = B::float_device(features);
    let dtype = get_device_settings::<B>(&device).int_dtype;
    let picks = kernel(&view.contiguous(), shape, keep);
    let data = TensorData::new(picks, [shape[0], keep]).convert_dtype(dtype.into());
    Some(B::int_from_data(data, &device))
}
