//! Plain Burn against the fused bodies, in one run: `cargo run --release -p dualspeed-ops --example ops_bench`.
//!
//! A Llama block, forward and backward, all weights trained, on 32 sequences of 181 tokens; then the pieces.

use std::time::Instant;

use burn::tensor::{Distribution, Tensor, TensorPrimitive};
use burn_autodiff::Autodiff;
use burn_ndarray::NdArray;
use dualspeed_ops::{AttentionSpec, plain};

type A = Autodiff<NdArray<f32>>;

const BATCH: usize = 32;
const TOKENS: usize = 181;
const HEAD: usize = 32;
const REPEATS: usize = 7;

fn primitive<const D: usize>(x: Tensor<A, D>) -> burn::tensor::ops::FloatTensor<A> {
    x.into_primitive().tensor()
}

fn wrap<const D: usize>(x: burn::tensor::ops::FloatTensor<A>) -> Tensor<A, D> {
    Tensor::from_primitive(TensorPrimitive::Float(x))
}

/// Which bodies.
#[derive(Clone, Copy)]
struct Ops {
    fused: bool,
}

impl Ops {
    fn linear(self, x: Tensor<A, 3>, weight: &Tensor<A, 2>) -> Tensor<A, 3> {
        match self.fused {
            true => dualspeed_ops::linear(x, weight.clone(), None),
            false => wrap(plain::linear::<A>(primitive(x), primitive(weight.clone()), None)),
        }
    }

    fn norm(self, x: Tensor<A, 3>, weight: &Tensor<A, 1>) -> Tensor<A, 3> {
        match self.fused {
            true => dualspeed_ops::rms_norm(x, weight.clone(), 1e-5),
            false => wrap(plain::rms_norm::<A>(primitive(x), primitive(weight.clone()), 1e-5)),
        }
    }

    fn rope(self, x: Tensor<A, 4>, cos: &Tensor<A, 3>, sin: &Tensor<A, 3>) -> Tensor<A, 4> {
        let (cos, sin) = (cos.clone(), sin.clone());
        match self.fused {
            true => dualspeed_ops::rope(x, cos, sin),
            false => wrap(plain::rope::<A>(primitive(x), primitive(cos), primitive(sin))),
        }
    }

    fn attention(self, q: Tensor<A, 4>, k: Tensor<A, 4>, v: Tensor<A, 4>) -> Tensor<A, 4> {
        let spec = AttentionSpec::causal();
        match self.fused {
            true => dualspeed_ops::attention(q, k, v, &spec),
            false => {
                let (q, k, v) = (primitive(q), primitive(k), primitive(v));
                wrap(plain::attention::<A>(q, k, v, &spec).output)
            }
        }
    }

    fn swiglu(self, gate: Tensor<A, 3>, up: Tensor<A, 3>) -> Tensor<A, 3> {
        match self.fused {
            true => dualspeed_ops::swiglu(gate, up),
            false => wrap(plain::swiglu::<A>(primitive(gate), primitive(up))),
        }
    }

    fn gelu(self, x: Tensor<A, 3>) -> Tensor<A, 3> {
        match self.fused {
            true => dualspeed_ops::gelu(x),
            false => wrap(plain::gelu::<A>(primitive(x))),
        }
    }
}

/// Median milliseconds of forward and backward of `f`, plain and fused.
fn compare(name: &str, flops: f64, f: impl Fn(Ops) -> Tensor<A, 3>) {
    let time = |ops: Ops| {
        let mut times: Vec<f64> = (0..=REPEATS)
            .map(|_| {
                let start = Instant::now();
                let _grads = f(ops).sum().backward();
                start.elapsed().as_secs_f64() * 1e3
            })
            .skip(1) // warm-up
            .collect();
        times.sort_by(f64::total_cmp);
        times[times.len() / 2]
    };
    let (plain, fused) = (time(Ops { fused: false }), time(Ops { fused: true }));
    let speed = flops / fused / 1e6;
    println!("| {name} | {plain:.1} | {fused:.1} | {:.2}x | {speed:.0} |", plain / fused);
}

fn random<const D: usize>(shape: [usize; D], scale: f64) -> Tensor<A, D> {
    let distribution = Distribution::Normal(0.0, scale);
    Tensor::<A, D>::random(shape, distribution, &Default::default()).require_grad()
}

fn block(d: usize) {
    let (hidden, heads) = (d * 8 / 3 / 16 * 16, d / HEAD);
    let scale = 1.0 / (d as f64).sqrt();
    let [wq, wk, wv, wo] = [(); 4].map(|()| random([d, d], scale));
    let [wg, wu] = [(); 2].map(|()| random([d, hidden], scale));
    let wd = random([hidden, d], scale);
    let [n1, n2] = [(); 2].map(|()| random([d], 1.0));
    let x = random([BATCH, TOKENS, d], 1.0);
    let angles = random([1, TOKENS, HEAD / 2], 3.0).detach();
    let (cos, sin) = (angles.clone().cos(), angles.sin());

    let rows = (BATCH * TOKENS) as f64;
    let products = 6.0 * rows * (4 * d * d + 3 * d * hidden) as f64;
    // Two products forward, five backward, half of each masked.
    let scores = 7.0 * rows * (TOKENS * d) as f64;
    compare(&format!("block, d {d}"), products + scores, |ops| {
        let split = |x: Tensor<A, 3>| x.reshape([BATCH, TOKENS, heads, HEAD]).swap_dims(1, 2);
        let h = ops.norm(x.clone(), &n1);
        let q = ops.rope(split(ops.linear(h.clone(), &wq)), &cos, &sin);
        let k = ops.rope(split(ops.linear(h.clone(), &wk)), &cos, &sin);
        let v = split(ops.linear(h, &wv));
        let o = ops.attention(q, k, v).swap_dims(1, 2).reshape([BATCH, TOKENS, d]);
        let x = x.clone() + ops.linear(o, &wo);
        let h = ops.norm(x.clone(), &n2);
        let h = ops.swiglu(ops.linear(h.clone(), &wg), ops.linear(h, &wu));
        x + ops.linear(h, &wd)
    });
}

fn pieces(d: usize) {
    let rows = (BATCH * TOKENS) as f64;
    let x = random([BATCH, TOKENS, d], 1.0);
    let wide = random([BATCH, TOKENS, 4 * d], 1.0);
    let up = random([BATCH, TOKENS, 4 * d], 1.0);
    let weight = random([d, 4 * d], 0.1);
    let gain = random([d], 1.0);
    let flops = 6.0 * rows * (4 * d * d) as f64;
    compare(&format!("linear {d} x {}", 4 * d), flops, |ops| ops.linear(x.clone(), &weight));
    compare(&format!("rms_norm {d}"), 0.0, |ops| ops.norm(x.clone(), &gain));
    compare(&format!("gelu {}", 4 * d), 0.0, |ops| ops.gelu(wide.clone()));
    compare(&format!("swiglu {}", 4 * d), 0.0, |ops| ops.swiglu(wide.clone(), up.clone()));
    let heads =
        |x: &Tensor<A, 3>| x.clone().reshape([BATCH, TOKENS, d / HEAD, HEAD]).swap_dims(1, 2);
    compare(&format!("causal attention {d}"), 7.0 * rows * (TOKENS * d) as f64, |ops| {
        let o = ops.attention(heads(&x), heads(&x), heads(&x));
        o.swap_dims(1, 2).reshape([BATCH, TOKENS, d])
    });
}

fn main() {
    println!(
        "| forward + backward, {BATCH} x {TOKENS} tokens | plain ms | fused ms | ratio | GFLOP/s |"
    );
    println!("|---|---|---|---|---|");
    for d in [128, 192, 256] {
        block(d);
    }
    pieces(128);
}
