//! The operations under test.

use burn::tensor::{Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use dualspeed_ops::{AttentionSpec, Backend, Dropout, DropoutKeys, LoraAdapter, plain};

use crate::case::Case;
use crate::data::{Flat, flat, primitive, tensor, wrap};

/// How the activations lie in memory.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum View {
    /// In order.
    Whole,
    /// From the second element of a larger buffer: odd addresses.
    Offset,
    /// Columns of a wider matrix.
    Columns,
    /// The first two dimensions swapped.
    Permuted,
}
use View::{Columns, Offset, Permuted, Whole};

impl View {
    /// Elements of the buffer behind `[b, s, d]`.
    fn len(self, [b, s, d]: [usize; 3]) -> usize {
        match self {
            Whole | Permuted => b * s * d,
            Offset => b * s * d + 1,
            Columns => b * s * (d + 3),
        }
    }

    fn of<B: Backend>(self, x: &Flat<B>, [b, s, d]: [usize; 3]) -> Tensor<Autodiff<B>, 3> {
        let x = x.clone();
        match self {
            Whole => x.reshape([b, s, d]),
            Offset => x.narrow(0, 1, b * s * d).reshape([b, s, d]),
            Columns => x.reshape([b, s, d + 3]).slice([0..b, 0..s, 2..d + 2]),
            Permuted => x.reshape([s, b, d]).swap_dims(0, 1),
        }
    }
}

type Shape3 = [usize; 3];

pub enum Op {
    /// Output width, bias, transposed weight.
    Linear(Shape3, View, usize, bool, bool),
    /// Output width, rank, dropout, bias.
    Lora(Shape3, View, usize, usize, bool, bool),
    RmsNorm(Shape3, View),
    LayerNorm(Shape3, View),
    Gelu(Shape3, View),
    QuickGelu(Shape3, View),
    Swiglu(Shape3, View),
    /// `[b, h, s, d]`, a view of `[b, s, h, d]`, tables per row.
    Rope([usize; 4], bool, bool),
    Attention {
        b: usize,
        hq: usize,
        hkv: usize,
        sq: usize,
        sk: usize,
        d: usize,
        causal: bool,
        lengths: bool,
        permuted: bool,
    },
    /// Query and key heads, head dim, lengths of the packed sequences.
    Packed(usize, usize, usize, Vec<usize>),
    /// Rows, width, vocabulary, teacher.
    Losses(usize, usize, usize, bool),
    /// Rows, picks, width.
    Select(usize, usize, usize),
}

pub fn all() -> Vec<Op> {
    let mut ops = Vec::new();
    for (shape, view) in [
        ([1, 2, 5], Whole),
        ([2, 67, 37], Offset),
        ([2, 33, 40], Permuted),
        ([3, 211, 130], Columns),
        ([2, 150, 512], Whole),
    ] {
        ops.push(Op::Linear(shape, view, shape[2] + 3, true, false));
        ops.push(Op::Linear(shape, view, 24, false, true));
        ops.push(Op::Lora(shape, view, shape[2] + 7, 4, false, true));
        ops.push(Op::Lora(shape, view, 24, 4, false, false));
        ops.push(Op::Lora(shape, view, 64, 16, true, shape[0] == 2));
        ops.push(Op::RmsNorm(shape, view));
        ops.push(Op::LayerNorm(shape, view));
        ops.push(Op::Gelu(shape, view));
        ops.push(Op::QuickGelu(shape, view));
        ops.push(Op::Swiglu(shape, view));
    }
    ops.push(Op::Linear([2, 300, 1024], Whole, 4096, true, false));
    ops.push(Op::RmsNorm([3, 5, 4096], Whole));
    ops.push(Op::LayerNorm([3, 5, 1024], Whole));
    ops.push(Op::RmsNorm([1, 3, 16_391], Offset));
    for (shape, permuted, per_row) in [
        ([2, 2, 3, 4], false, false),
        ([3, 4, 67, 10], true, true),
        ([2, 3, 130, 64], false, true),
        ([1, 32, 40, 128], true, false),
    ] {
        ops.push(Op::Rope(shape, permuted, per_row));
    }
    for d in [64, 80, 96, 128, 32, 72] {
        for (causal, lengths, permuted) in
            [(true, false, true), (false, true, false), (true, true, false), (false, false, true)]
        {
            let (b, hq, hkv, sq, sk) = match (causal, lengths) {
                (true, false) => (2, 4, 4, 130, 130),
                (false, true) => (3, 2, 2, 33, 77),
                (true, true) => (2, 6, 2, 70, 201),
                (false, false) => (1, 4, 1, 257, 257),
            };
            ops.push(Op::Attention { b, hq, hkv, sq, sk, d, causal, lengths, permuted });
            // Short sequences, which kernels of their own serve.
            let t = match (causal, lengths) {
                (true, false) => 93,
                (false, true) => 128,
                (true, true) => 65,
                (false, false) => 64,
            };
            let (hq, hkv, sq, sk) = (3, 3, t, t);
            ops.push(Op::Attention { b: 3, hq, hkv, sq, sk, d, causal, lengths, permuted });
        }
    }
    // Decoding: one query, many keys.
    ops.push(Op::Attention {
        b: 2,
        hq: 4,
        hkv: 2,
        sq: 1,
        sk: 300,
        d: 128,
        causal: true,
        lengths: false,
        permuted: true,
    });
    for (hq, hkv, d) in [(4, 4, 128), (4, 2, 64), (2, 1, 80), (2, 2, 40)] {
        ops.push(Op::Packed(hq, hkv, d, vec![1, 130, 64, 7, 200, 33]));
    }
    for (h, d) in [(3, 128), (2, 64)] {
        ops.push(Op::Packed(h, h, d, vec![1, 96, 64, 7, 17]));
        ops.push(Op::Packed(h, h, d, vec![128, 1, 97]));
    }
    for (n, m, d) in [(1, 1, 3), (40, 25, 77), (300, 5000, 64), (2000, 700, 4096)] {
        ops.push(Op::Select(n, m, d));
    }
    for teacher in [false, true] {
        ops.push(Op::Losses(5, 8, 11, teacher));
        ops.push(Op::Losses(70, 96, 1003, teacher));
        ops.push(Op::Losses(300, 128, 32_000, teacher));
    }
    ops
}

/// Two bodies for one operation.
macro_rules! either {
    ($plain:expr, $slow:expr, $fast:expr) => {
        if $plain { wrap($slow) } else { $fast }
    };
}

impl Case for Op {
    fn name(&self) -> String {
        match self {
            Self::Linear(s, v, o, b, t) => {
                format!("linear {s:?} {v:?} -> {o} bias {b} weight^T {t}")
            }
            Self::Lora(s, v, o, r, m, b) => {
                format!("lora {s:?} {v:?} -> {o} r {r} dropout {m} bias {b}")
            }
            Self::RmsNorm(s, v) => format!("rms_norm {s:?} {v:?}"),
            Self::LayerNorm(s, v) => format!("layer_norm {s:?} {v:?}"),
            Self::Gelu(s, v) => format!("gelu {s:?} {v:?}"),
            Self::QuickGelu(s, v) => format!("quick_gelu {s:?} {v:?}"),
            Self::Swiglu(s, v) => format!("swiglu {s:?} {v:?}"),
            Self::Rope(s, p, r) => format!("rope {s:?} permuted {p} per row {r}"),
            Self::Attention { b, hq, hkv, sq, sk, d, causal, lengths, permuted } => format!(
                "attention b{b} h{hq}/{hkv} {sq}x{sk} d{d} causal {causal} lengths {lengths} permuted {permuted}"
            ),
            Self::Packed(hq, hkv, d, lengths) => {
                format!("attention packed h{hq}/{hkv} d{d} {lengths:?}")
            }
            Self::Losses(n, d, v, t) => format!("token_losses {n} x {d} x {v} teacher {t}"),
            Self::Select(n, m, d) => format!("select_rows {m} of {n} x {d}"),
        }
    }

    fn inputs(&self) -> Vec<(usize, bool)> {
        if let Self::Packed(hq, hkv, d, lengths) = self {
            let total = lengths.iter().sum::<usize>() * d;
            return vec![(hq * total, true), (hkv * total, true), (hkv * total, true)];
        }
        match *self {
            Self::Packed(..) => Vec::new(),
            Self::Linear(s, v, out, bias, _) => {
                let mut inputs = vec![(v.len(s), true), (s[2] * out, false)];
                inputs.extend(bias.then_some((out, false)));
                inputs
            }
            Self::Lora(s, v, out, r, _, bias) => {
                let mut inputs = vec![(v.len(s), true), (s[2] * out, true)];
                inputs.extend([(s[2] * r, false), (r * out, false)]);
                inputs.extend(bias.then_some((out, false)));
                inputs
            }
            Self::RmsNorm(s, v) => vec![(v.len(s), true), (s[2], false)],
            Self::LayerNorm(s, v) => vec![(v.len(s), true), (s[2], false), (s[2], false)],
            Self::Gelu(s, v) | Self::QuickGelu(s, v) => vec![(v.len(s), true)],
            Self::Swiglu(s, v) => vec![(v.len(s), true), (v.len(s), true)],
            Self::Rope([b, h, s, d], ..) => vec![(b * h * s * d, true)],
            Self::Attention { b, hq, hkv, sq, sk, d, .. } => {
                let keys = b * hkv * sk * d;
                vec![(b * hq * sq * d, true), (keys, true), (keys, true)]
            }
            Self::Select(n, _, d) => vec![(n * d, true)],
            Self::Losses(n, d, vocab, teacher) => {
                let mut inputs = vec![(n * d, true), (d * vocab, false)];
                if teacher {
                    inputs.push((n * d, true));
                }
                inputs
            }
        }
    }

    fn smooth(&self, element: usize) -> bool {
        // The accuracy of the losses jumps.
        !matches!(self, Self::Losses(..)) || element % 3 != 2
    }

    fn run<B: Backend>(&self, slow: bool, x: &[Flat<B>]) -> Flat<B> {
        type A<B> = Autodiff<B>;
        if let Self::Packed(hq, hkv, d, lengths) = self {
            let total = lengths.iter().sum();
            let [q, k, v] = [(0, *hq), (1, *hkv), (2, *hkv)]
                .map(|(i, h): (usize, usize)| heads(&x[i], [1, h, total, *d], true));
            let spec = AttentionSpec::packed(lengths.clone());
            return flat::<A<B>, 4>(either!(
                slow,
                plain::attention::<A<B>>(primitive(q), primitive(k), primitive(v), &spec).output,
                dualspeed_ops::attention(q, k, v, &spec)
            ));
        }
        match *self {
            Self::Packed(..) => x[0].clone(),
            Self::Linear(s, view, out, bias, transposed) => {
                let input = view.of(&x[0], s);
                let weight = match transposed {
                    true => x[1].clone().reshape([out, s[2]]).transpose(),
                    false => x[1].clone().reshape([s[2], out]),
                };
                let weight = weight.mul_scalar((s[2] as f64).powf(-0.5));
                let bias = bias.then(|| x[2].clone());
                flat::<A<B>, 3>(either!(
                    slow,
                    plain::linear::<A<B>>(primitive(input), primitive(weight), bias.map(primitive)),
                    dualspeed_ops::linear(input, weight, bias)
                ))
            }
            Self::Lora(s, view, out, r, masked, _) => {
                let input = view.of(&x[0], s);
                let dropout = masked.then(|| {
                    let keys = (0..(s[0] * s[1]) as u64).map(|row| 31 * row + 5).collect();
                    let keys = DropoutKeys::<A<B>>::new(keys, &Default::default());
                    Dropout { keys, place: 3, p: 0.2 }
                });
                let weight = x[1].clone().reshape([s[2], out]);
                let a = x[2].clone().reshape([s[2], r]);
                let b = x[3].clone().reshape([r, out]);
                let (bias, scale) = (x.get(4).cloned(), 0.25);
                flat::<A<B>, 3>(either!(
                    slow,
                    plain::lora_linear::<A<B>>(
                        primitive(input),
                        primitive(weight),
                        bias.map(primitive),
                        LoraAdapter { a: primitive(a), b: primitive(b), scale, dropout }
                    )
                    .output,
                    dualspeed_ops::lora_linear(input, weight, bias, a, b, scale, dropout)
                ))
            }
            Self::RmsNorm(s, view) => {
                let (input, weight) = (view.of(&x[0], s), x[1].clone());
                flat::<A<B>, 3>(either!(
                    slow,
                    plain::rms_norm::<A<B>>(primitive(input), primitive(weight), 1e-5),
                    dualspeed_ops::rms_norm(input, weight, 1e-5)
                ))
            }
            Self::LayerNorm(s, view) => {
                let (input, weight, bias) = (view.of(&x[0], s), x[1].clone(), x[2].clone());
                flat::<A<B>, 3>(either!(
                    slow,
                    plain::layer_norm::<A<B>>(
                        primitive(input),
                        primitive(weight),
                        primitive(bias),
                        1e-5
                    ),
                    dualspeed_ops::layer_norm(input, weight, bias, 1e-5)
                ))
            }
            Self::Gelu(s, view) => {
                let input = view.of(&x[0], s).mul_scalar(4.0);
                flat::<A<B>, 3>(either!(
                    slow,
                    plain::gelu::<A<B>>(primitive(input)),
                    dualspeed_ops::gelu(input)
                ))
            }
            Self::QuickGelu(s, view) => {
                let input = view.of(&x[0], s).mul_scalar(4.0);
                flat::<A<B>, 3>(either!(
                    slow,
                    plain::quick_gelu::<A<B>>(primitive(input)),
                    dualspeed_ops::quick_gelu(input)
                ))
            }
            Self::Swiglu(s, view) => {
                let (gate, up) = (view.of(&x[0], s), view.of(&x[1], s));
                flat::<A<B>, 3>(either!(
                    slow,
                    plain::swiglu::<A<B>>(primitive(gate), primitive(up)),
                    dualspeed_ops::swiglu(gate, up)
                ))
            }
            Self::Rope([b, h, s, d], permuted, per_row) => {
                let input = heads(&x[0], [b, h, s, d], permuted);
                let rows = if per_row { b } else { 1 };
                let table = |f: fn(f64) -> f64| {
                    let values: Vec<f64> = (0..rows * s * d / 2)
                        .map(|i| f((i * 7919 % 1000) as f64 / 160.0))
                        .collect();
                    let wide =
                        if slow { burn::tensor::DType::F64 } else { burn::tensor::DType::F32 };
                    tensor::<A<B>, 3>(&values, [rows, s, d / 2], wide)
                };
                let (cos, sin) = (table(f64::cos), table(f64::sin));
                flat::<A<B>, 4>(either!(
                    slow,
                    plain::rope::<A<B>>(primitive(input), primitive(cos), primitive(sin)),
                    dualspeed_ops::rope(input, cos, sin)
                ))
            }
            Self::Attention { b, hq, hkv, sq, sk, d, causal, lengths, permuted } => {
                let q = heads(&x[0], [b, hq, sq, d], permuted);
                let k = heads(&x[1], [b, hkv, sk, d], permuted);
                let v = heads(&x[2], [b, hkv, sk, d], permuted);
                let key_lengths = lengths.then(|| (0..b).map(|i| sk - i * (sk / 3)).collect());
                let spec = AttentionSpec { causal, key_lengths, ..AttentionSpec::default() };
                flat::<A<B>, 4>(either!(
                    slow,
                    plain::attention::<A<B>>(primitive(q), primitive(k), primitive(v), &spec)
                        .output,
                    dualspeed_ops::attention(q, k, v, &spec)
                ))
            }
            Self::Select(n, m, d) => {
                // Some rows never, some once, row 0 very often.
                let ids: Vec<i64> = (0..m as i64)
                    .map(|i| if i % 3 == 0 { 0 } else { i * 7919 % n as i64 })
                    .collect();
                let ids = TensorData::new(ids, [m]);
                let ids = Tensor::<A<B>, 1, Int>::from_data(ids, &x[0].device());
                let rows = x[0].clone().reshape([n, d]);
                flat::<A<B>, 2>(match slow {
                    true => rows.select(0, ids),
                    false => dualspeed_ops::select_rows(rows, ids),
                })
            }
            Self::Losses(n, d, vocab, teacher) => {
                let hidden = x[0].clone().reshape([n, d]);
                let head = x[1].clone().reshape([d, vocab]).mul_scalar(2.0 * (d as f64).powf(-0.5));
                let teacher = teacher.then(|| x[2].clone().reshape([n, d]));
                // The teacher is a constant also through the head; autodiff of the plain body would not know. See `separate`.
                let head = if teacher.is_some() { head.detach() } else { head };
                let ids: Vec<i64> = (0..n as i64).map(|i| i * 7919 % vocab as i64).collect();
                let device = hidden.device();
                let targets = Tensor::<A<B>, 1, Int>::from_data(TensorData::new(ids, [n]), &device);
                flat::<A<B>, 2>(either!(
                    slow,
                    plain::token_losses::<A<B>>(
                        primitive(hidden),
                        primitive(head),
                        targets.into_primitive(),
                        teacher.map(|teacher| primitive(teacher.detach())),
                        2.0
                    ),
                    dualspeed_ops::token_losses(hidden, head, targets, teacher, 2.0)
                ))
            }
        }
    }
}

fn heads<B: Backend>(
    x: &Flat<B>,
    [b, h, s, d]: [usize; 4],
    permuted: bool,
) -> Tensor<Autodiff<B>, 4> {
    match permuted {
        true => x.clone().reshape([b, s, h, d]).swap_dims(1, 2),
        false => x.clone().reshape([b, h, s, d]),
    }
}
