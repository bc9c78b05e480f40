//! Checks that are no forward and backward: picks, the optimiser, the order of launches.

use burn::tensor::backend::Backend as _;
use burn::tensor::{DType, Int, Shape, Tensor, TensorData};
use burn_cuda::Cuda;
use burn_ndarray::NdArray;
use dualspeed_ops::{AdamWConfig, AdamWGuard, AdamWTensor, Backend, Dropout, DropoutKeys, plain};

use crate::case::Report;
use crate::data::{primitive, relative_error, rounded, tensor, to_vec, values, wrap};

type B = Cuda<f32, i32>;

/// Picks are valid where each is as far from the earlier ones as any other, up to the rounding of a cosine in f32, and of
/// equal rows the first comes first.
pub fn farthest_points(report: &mut Report) {
    for (b, n, d, keep) in [(1, 1, 3, 1), (3, 100, 64, 20), (2, 577, 130, 58), (2, 33, 5, 33)] {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let name = format!("farthest_points {b}x{n}x{d} -> {keep}, {dtype:?}");
            if !report.wants(&name) {
                continue;
            }
            let mut features = values(b * n * d, dtype, report.seed());
            if n > 20 {
                // A row twice, and a row of zeros.
                features.copy_within(3 * d..4 * d, 7 * d);
                features[5 * d..6 * d].fill(0.0);
            }
            let picks =
                dualspeed_ops::farthest_points(tensor::<B, 3>(&features, [b, n, d], dtype), keep);
            let picks: Vec<usize> = picks.into_data().iter::<i64>().map(|i| i as usize).collect();
            let worst = (0..b).map(|image| {
                let rows = &features[image * n * d..(image + 1) * n * d];
                shortfall(rows, n, d, &picks[image * keep..(image + 1) * keep])
            });
            let worst = worst.fold(0.0, f64::max);
            let first = picks[..keep].iter().position(|i| *i == 3);
            let second = picks[..keep].iter().position(|i| *i == 7);
            let in_order = n <= 20 || second.is_none() || first < second && first.is_some();
            report.line(&name, &[if in_order { worst } else { f64::INFINITY }], 3e-6, "");
        }
    }
}

/// By how much a pick was nearer than the farthest row, at most.
fn shortfall(rows: &[f64], n: usize, d: usize, picks: &[usize]) -> f64 {
    let norm =
        |i: usize| rows[i * d..(i + 1) * d].iter().map(|x| x * x).sum::<f64>().sqrt().max(1e-12);
    let distance = |i: usize, j: usize| {
        let dot: f64 = (0..d).map(|k| rows[i * d + k] * rows[j * d + k]).sum();
        1.0 - dot / (norm(i) * norm(j))
    };
    let mut nearest: Vec<f64> = (0..n)
        .map(|i| (0..n).filter(|j| *j != i).map(|j| distance(i, j)).fold(4.0, f64::min))
        .collect();
    let mut worst = 0.0_f64;
    for (step, pick) in picks.iter().enumerate() {
        if *pick >= n || picks[..step].contains(pick) {
            return f64::INFINITY;
        }
        let best = (0..n).filter(|i| !picks[..step].contains(i)).map(|i| nearest[i]);
        worst = worst.max(best.fold(f64::MIN, f64::max) - nearest[*pick]);
        if step == 0 {
            nearest.fill(4.0);
        }
        for (i, value) in nearest.iter_mut().enumerate() {
            *value = value.min(distance(*pick, i));
        }
    }
    worst
}

/// Picks of the greedy MAP: each gains as much as any other would, up to the rounding of f32.
pub fn greedy_map(report: &mut Report) {
    for (b, n, d, keep) in [(1, 3, 5, 2), (3, 100, 64, 20), (2, 577, 130, 58), (2, 33, 50, 33)] {
        for dtype in [DType::F32, DType::BF16] {
            let name = format!("greedy_map {b}x{n}x{d} -> {keep}, {dtype:?}");
            if !report.wants(&name) {
                continue;
            }
            let features = values(b * n * d, dtype, report.seed());
            let picks =
                dualspeed_ops::greedy_map(tensor::<B, 3>(&features, [b, n, d], dtype), keep);
            let picks: Vec<usize> = picks.into_data().iter::<i64>().map(|i| i as usize).collect();
            let worst = (0..b).map(|image| {
                let rows = &features[image * n * d..(image + 1) * n * d];
                lost_gain(rows, n, d, &picks[image * keep..(image + 1) * keep])
            });
            report.line(&name, &[worst.fold(0.0, f64::max)], 1e-4, "");
        }
    }
}

/// By how much a pick gained less than the best row, relative to the largest diagonal entry.
fn lost_gain(rows: &[f64], n: usize, d: usize, picks: &[usize]) -> f64 {
    let product =
        |i: usize, j: usize| -> f64 { (0..d).map(|k| rows[i * d + k] * rows[j * d + k]).sum() };
    let diagonal: Vec<f64> = (0..n).map(|i| product(i, i)).collect();
    let largest = diagonal.iter().copied().fold(1e-30, f64::max);
    let (mut residual, mut factors) = (diagonal, Vec::<Vec<f64>>::new());
    let mut worst = 0.0_f64;
    for (step, pick) in picks.iter().enumerate() {
        if *pick >= n || picks[..step].contains(pick) {
            return f64::INFINITY;
        }
        let best = (0..n).filter(|i| !picks[..step].contains(i)).map(|i| residual[i]);
        worst = worst.max((best.fold(f64::MIN, f64::max) - residual[*pick]) / largest);
        let root = residual[*pick].max(1e-12).sqrt();
        let factor: Vec<f64> = (0..n)
            .map(|i| {
                let known: f64 = factors.iter().map(|f| f[*pick] * f[i]).sum();
                (product(*pick, i) - known) / root
            })
            .collect();
        residual.iter_mut().zip(&factor).for_each(|(r, f)| *r -= f * f);
        factors.push(factor);
    }
    worst
}

const LENGTHS: [usize; 6] = [1, 7, 8192, 8193, 100_000, 3];

fn adamw_run<T: Backend>(
    data: &[[Vec<f64>; 4]],
    config: AdamWConfig,
    losses: [f32; 2],
    step: impl Fn(Vec<AdamWTensor<T>>, AdamWGuard<T>, AdamWConfig) -> dualspeed_ops::AdamWOutput<T>,
) -> (Vec<f64>, [f64; 3]) {
    let make = |values: &[f64]| primitive(tensor::<T, 1>(values, [values.len()], DType::F32));
    let mut state: Vec<[_; 3]> =
        data.iter().map(|[p, _, m, v]| [make(p), make(m), make(v)]).collect();
    let mut seen = [0.0; 3];
    let mut before = None;
    for round in 0..2 {
        let tensors = state
            .into_iter()
            .zip(data)
            .enumerate()
            .map(|(i, ([param, m, v], [_, grad, ..]))| AdamWTensor {
                param,
                grad: make(grad),
                m,
                v,
                lr: 1e-3 * (1 + i) as f64,
                // Of the six tensors, two are younger.
                updates: if i % 3 == 0 { 5 } else { 3 } + round,
                undecided: round > 0,
            })
            .collect();
        // The first round is applied or not, the second one does not know.
        let first = make(&losses.map(f64::from));
        let losses = if round == 0 { Some(first) } else { None };
        let out = step(tensors, AdamWGuard { losses, before: before.take() }, config);
        seen[round as usize] = to_vec(wrap::<T, 1>(out.applied.clone()))[0];
        seen[2] = to_vec(wrap::<T, 1>(out.norm))[0];
        before = Some(out.applied);
        state = out.updated;
    }
    let all = state.into_iter().flatten().flat_map(|x| to_vec(wrap::<T, 1>(x))).collect();
    (all, seen)
}

/// Parameters, moments, the norm and what was applied, clipped and not, after a step that is skipped and one that is not,
/// against the plain body.
pub fn adamw(report: &mut Report) {
    let cases = [(0.0, 0.5, 1e-8), (1.0, 0.5, 1e-8), (1e6, 0.5, 1e-8)];
    // A loss that is not finite, and constants with which every value is looked at first, once with zeros divided by zero.
    let cases = cases.into_iter().chain([(1.0, f32::NAN, 1e-8), (1.0, f32::INFINITY, 1e-30)]);
    for (max_grad_norm, loss, eps) in cases.chain([(1.0, 0.5, 1e-30), (1.0, 0.5, 0.0)]) {
        let name = format!("adamw, clipped at {max_grad_norm}, loss {loss}, eps {eps}");
        if !report.wants(&name) {
            continue;
        }
        let data: Vec<[Vec<f64>; 4]> = LENGTHS
            .iter()
            .map(|len| {
                let mut next = || values(*len, DType::F32, report.seed());
                let second: Vec<f64> = next().iter().map(|v| v * v).collect();
                let zero = eps == 0.0 && *len == 1;
                let some = |values: Vec<f64>| if zero { vec![0.0] } else { values };
                [next(), some(next()), some(next()), some(second)]
            })
            .collect();
        let config = AdamWConfig {
            beta1: 0.9,
            beta2: 0.999,
            eps,
            weight_decay: 0.01,
            grad_scale: 0.125,
            max_grad_norm,
        };
        let losses = [0.25, loss];
        let (expected, seen) = adamw_run::<NdArray<f32>>(&data, config, losses, plain::adamw);
        let (actual, ours) = adamw_run::<B>(&data, config, losses, B::fused_adamw);
        let errors = [relative_error(&actual, &expected), relative_error(&ours, &seen)];
        report.line(&name, &errors, 2e-6, "");
    }
}

/// The gradient of a trained head under distillation, against the plain backward body.
pub fn distilled_head(report: &mut Report) {
    let (n, d, vocab) = (70, 96, 1003);
    for (dtype, tolerance) in [(DType::F32, 2e-5), (DType::BF16, 1e-2)] {
        let name = format!("token_losses_backward, head and teacher, {dtype:?}");
        if !report.wants(&name) {
            continue;
        }
        let [hidden, teacher] = [(); 2].map(|()| values(n * d, dtype, report.seed()));
        let head: Vec<f64> =
            values(d * vocab, dtype, report.seed()).iter().map(|x| x * 0.25).collect();
        let grad = values(n * 3, DType::F32, report.seed());
        let inputs = [hidden, teacher, head, grad];
        let expected = head_gradient::<NdArray<f64>>(&inputs, [n, d, vocab], DType::F64, true);
        let actual = head_gradient::<B>(&inputs, [n, d, vocab], dtype, false);
        report.line(&name, &[relative_error(&actual, &expected)], tolerance, "");
    }
}

fn head_gradient<T: Backend>(
    [hidden, teacher, head, grad]: &[Vec<f64>; 4],
    [n, d, vocab]: [usize; 3],
    dtype: DType,
    slow: bool,
) -> Vec<f64> {
    let ids: Vec<i64> = (0..n as i64).map(|i| i * 7919 % vocab as i64).collect();
    let targets = TensorData::new(ids, [n]);
    let targets = Tensor::<T, 1, Int>::from_data(targets, &Default::default()).into_primitive();
    let rows = |values| primitive(tensor::<T, 2>(values, [n, d], dtype));
    let wide = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let (hidden, teacher) = (rows(hidden), Some(rows(teacher)));
    let head = primitive(tensor::<T, 2>(head, [d, vocab], dtype));
    let grad = primitive(tensor::<T, 2>(grad, [n, 3], wide));
    let needs = [true, true];
    let grads = match slow {
        true => plain::token_losses_backward::<T>(hidden, head, targets, teacher, 2.0, grad, needs),
        false => T::fused_token_losses_backward(hidden, head, targets, teacher, 2.0, grad, needs),
    };
    grads.lm_head.map(|grad| to_vec(wrap::<T, 2>(grad))).unwrap_or_default()
}

/// Masks are those of the host, bit for bit; uploads arrive; free memory is known.
pub fn dropout(report: &mut Report) {
    let name = "dropout masks, uploads, free memory";
    if !report.wants(name) {
        return;
    }
    let rows: Vec<u64> = (0..37).map(|_| report.seed()).collect();
    let mut errors = Vec::new();
    for (d, dtype) in [(1, DType::F32), (130, DType::F32), (256, DType::BF16), (77, DType::F16)] {
        let ours = to_vec(mask::<B>(rows.clone(), d, dtype));
        let theirs = to_vec(mask::<NdArray<f32>>(rows.clone(), d, DType::F32));
        let theirs: Vec<f64> = theirs.into_iter().map(|x| rounded(x as f32, dtype)).collect();
        errors.push(relative_error(&ours, &theirs));
    }
    // More than the buffers that are kept, in sizes that share and outgrow them, without a wait.
    let pieces: Vec<Vec<f32>> = (0..12)
        .map(|i| (0..200_000 * (i % 5 + 1)).map(|j| (i * 31 + j % 977) as f32).collect())
        .collect();
    let sent: Vec<_> = pieces
        .iter()
        .map(|values| {
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let (head, tail) = bytes.split_at(bytes.len() / 3 / 4 * 4);
            let shape = Shape::new([values.len()]);
            wrap::<B, 1>(B::upload(&[head, tail], shape, DType::F32, &Default::default()))
        })
        .collect();
    for (sent, values) in sent.into_iter().zip(&pieces) {
        let values: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
        errors.push(relative_error(&to_vec(sent), &values));
    }
    let free = B::memory(&Default::default()).map(|memory| memory.free);
    errors.push(if free.is_some_and(|free| free > 1 << 30) { 0.0 } else { f64::INFINITY });
    report.line(name, &errors, 0.0, &format!(", {free:?} bytes"));
}

fn mask<T: Backend>(rows: Vec<u64>, d: usize, dtype: DType) -> Tensor<T, 2> {
    let device = Default::default();
    let ones = Tensor::<T, 2>::ones([rows.len(), d], (&device, dtype));
    let keys = DropoutKeys::<T>::new(rows, &device);
    dualspeed_ops::dropout(ones, &Dropout { keys, place: 5, p: 0.25 })
}

/// 300 products between Burn's own operations, bit for bit what they are with a wait after each; with a weight made on
/// another thread, and so on another stream.
pub fn interleaved(report: &mut Report) {
    let name = "order of launches";
    if !report.wants(name) {
        return;
    }
    let device = Default::default();
    let n = 512;
    let x = tensor::<B, 2>(&values(n * n, DType::F32, report.seed()), [n, n], DType::BF16);
    let seed = report.seed();
    let weight = std::thread::spawn(move || {
        let values = values(n * n, DType::F32, seed);
        tensor::<B, 2>(&values, [n, n], DType::BF16).mul_scalar(1.0 / (n as f64).sqrt())
    });
    let Ok(weight) = weight.join() else { return report.line(name, &[f64::INFINITY], 0.0, "") };
    let chain = |wait: bool| -> Vec<f64> {
        let sync = || if wait { B::sync(&device).is_ok() } else { true };
        let mut y = x.clone();
        for i in 0..300 {
            y = dualspeed_ops::linear(y.mul_scalar(1.0), weight.clone(), None);
            sync();
            let gain = Tensor::<B, 1>::ones([n], (&device, DType::BF16)).mul_scalar(0.5);
            y = dualspeed_ops::rms_norm(y + x.clone(), gain, 1e-5);
            sync();
            y = y.mul_scalar(if i % 2 == 0 { 0.5 } else { 0.7 });
            sync();
        }
        to_vec(y)
    };
    let (fast, slow) = (chain(false), chain(true));
    report.line(name, &[relative_error(&fast, &slow)], 0.0, "");
}
