//! Checks that are no forward and backward: picks, the optimiser, the order of launches.

use burn::tensor::backend::Backend as _;
use burn::tensor::{DType, Tensor};
use burn_cuda::Cuda;
use burn_ndarray::NdArray;
use dualspeed_ops::{AdamWConfig, AdamWTensor, Backend, plain};

use crate::case::Report;
use crate::data::{primitive, relative_error, tensor, to_vec, values, wrap};

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

const LENGTHS: [usize; 6] = [1, 7, 8192, 8193, 100_000, 3];

fn adamw_run<T: Backend>(
    data: &[[Vec<f64>; 4]],
    config: AdamWConfig,
    step: impl Fn(Vec<AdamWTensor<T>>, AdamWConfig) -> dualspeed_ops::AdamWOutput<T>,
) -> (Vec<f64>, f64) {
    let make = |values: &[f64]| primitive(tensor::<T, 1>(values, [values.len()], DType::F32));
    let mut state: Vec<[_; 3]> =
        data.iter().map(|[p, _, m, v]| [make(p), make(m), make(v)]).collect();
    let mut norm = 0.0;
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
            })
            .collect();
        let out = step(tensors, config);
        norm = to_vec(wrap::<T, 1>(out.norm))[0];
        state = out.updated;
    }
    let all = state.into_iter().flatten().flat_map(|x| to_vec(wrap::<T, 1>(x))).collect();
    (all, norm)
}

/// Parameters, moments and the norm, clipped and not, against the plain body.
pub fn adamw(report: &mut Report) {
    for max_grad_norm in [0.0, 1.0, 1e6] {
        let name = format!("adamw, clipped at {max_grad_norm}");
        if !report.wants(&name) {
            continue;
        }
        let data: Vec<[Vec<f64>; 4]> = LENGTHS
            .iter()
            .map(|len| {
                let mut next = || values(*len, DType::F32, report.seed());
                let second: Vec<f64> = next().iter().map(|v| v * v).collect();
                [next(), next(), next(), second]
            })
            .collect();
        let config = AdamWConfig {
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.01,
            grad_scale: 0.125,
            max_grad_norm,
        };
        let (expected, norm) = adamw_run::<NdArray<f32>>(&data, config, plain::adamw);
        let (actual, our_norm) = adamw_run::<B>(&data, config, B::fused_adamw);
        let errors = [relative_error(&actual, &expected), relative_error(&[our_norm], &[norm])];
        report.line(&name, &errors, 2e-6, "");
    }
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
