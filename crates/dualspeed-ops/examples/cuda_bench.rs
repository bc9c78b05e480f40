//! Times of the fast CUDA bodies, one JSON object per line: `cargo run --release -p dualspeed-ops --features cuda
//! --example cuda_bench`. `benches/torch_ops.py` prints the same names for PyTorch, `benches/compare.py` joins the two.
//!
//! A time is the median over blocks of calls, each block timed by the host from one synchronisation to the next, after a
//! warm-up. Random data. With an argument only the names that contain it run; `plain` times Burn's own bodies instead.

use std::time::Instant;

use burn::tensor::backend::Backend as _;
use burn::tensor::ops::{FloatTensor, FloatTensorOps as _};
use burn::tensor::{DType, Distribution, Int, Tensor, TensorData, TensorPrimitive};
use burn_autodiff::Autodiff;
use burn_cuda::{Cuda, CudaDevice};
use dualspeed_ops::{
    AdamWConfig, AdamWTensor, AttentionOutput, AttentionSpec, Backend, BlockContext, BlockLinear,
    BlockParams, Keep, LinearSaved, LoraLinearSaved, plain,
};

type B = Cuda<f32, i32>;
type T = FloatTensor<B>;

const BF16: DType = DType::BF16;

fn device() -> CudaDevice {
    CudaDevice::default()
}

fn sync() {
    if let Err(error) = B::sync(&device()) {
        eprintln!("{error}");
    }
}

fn random<const D: usize>(shape: [usize; D], dtype: DType) -> T {
    let x = Tensor::<B, D>::random(shape, Distribution::Normal(0.0, 1.0), (&device(), dtype));
    x.into_primitive().tensor()
}

/// A view of `[b, s, h, d]`, as a model's heads are.
fn heads([b, h, s, d]: [usize; 4]) -> T {
    B::float_swap_dims(random([b, s, h, d], BF16), 1, 2)
}

struct Bench {
    filter: String,
}

impl Bench {
    /// `flops`: of one call, 0 where memory is what counts. Calls are sent eight at a time, as a decoder block sends its
    /// operations.
    fn time<R>(&self, name: &str, flops: f64, mut call: impl FnMut() -> R) {
        self.measure(name, flops, |calls| {
            for start in (0..calls).step_by(8) {
                B::batched(|| (start..calls.min(start + 8)).for_each(|_| drop(call())));
            }
        });
    }

    /// For calls that are more than operations of ours.
    fn time_apart<R>(&self, name: &str, flops: f64, mut call: impl FnMut() -> R) {
        self.measure(name, flops, |calls| (0..calls).for_each(|_| drop(call())));
    }

    fn measure(&self, name: &str, flops: f64, mut run: impl FnMut(usize)) {
        if !name.contains(&self.filter) {
            return;
        }
        let mut block = |calls: usize| {
            let start = Instant::now();
            run(calls);
            sync();
            start.elapsed().as_secs_f64() * 1e3 / calls as f64
        };
        let first = block(1);
        let estimate = block(3).max(1e-3);
        let calls = ((20.0 / estimate) as usize).clamp(1, 400);
        block(calls); // warm-up
        let mut times: Vec<f64> = (0..7).map(|_| block(calls)).collect();
        times.sort_by(f64::total_cmp);
        let (ms, spread) = (times[3], times[5] - times[1]);
        let rate = flops / ms / 1e9;
        println!(
            "{{\"name\": \"{name}\", \"ms\": {ms:.5}, \"spread\": {spread:.5}, \"tflops\": {rate:.1}, \"first_ms\": {first:.1}}}"
        );
    }
}

/// `[rows, d_in, d_out]` of cuda.md and of a 7B block.
const PRODUCTS: [[usize; 3]; 7] = [
    [8192, 8192, 8192],
    [11_264, 4096, 11_008],
    [11_264, 11_008, 4096],
    [3024, 4096, 11_008],
    [3024, 4096, 4096],
    [11_264, 4096, 4096],
    [11_264, 4096, 128],
];

fn products(bench: &Bench) {
    for [m, k, n] in PRODUCTS {
        let (x, w) = (random([m, k], BF16), random([k, n], BF16));
        let grad = random([m, n], BF16);
        let flops = 2.0 * (m * k * n) as f64;
        bench.time(&format!("product {m}x{k}x{n}"), flops, || {
            B::fused_linear(x.clone(), w.clone(), None)
        });
        let saved = |x: Option<&T>, w: Option<&T>| LinearSaved::<B> {
            x: x.cloned(),
            weight: w.cloned(),
            weight_dtype: BF16,
            bias_dtype: None,
        };
        bench.time(&format!("product {m}x{k}x{n} dx"), flops, || {
            B::fused_linear_backward(saved(None, Some(&w)), grad.clone())
        });
        bench.time(&format!("product {m}x{k}x{n} dw"), flops, || {
            B::fused_linear_backward(saved(Some(&x), None), grad.clone())
        });
    }
}

fn lora(bench: &Bench) {
    let r = 128;
    for [m, k, n] in [[4048, 4096, 4096], [4048, 4096, 11_008], [12_288, 4096, 11_008]] {
        let (x, w, grad) = (random([m, k], BF16), random([k, n], BF16), random([m, n], BF16));
        let (a, b) = (random([k, r], DType::F32), random([r, n], DType::F32));
        let flops = 2.0 * (m * k * n + m * k * r + m * r * n) as f64;
        let forward =
            || B::fused_lora_linear(x.clone(), w.clone(), a.clone(), b.clone(), 2.0, None);
        bench.time(&format!("lora {m}x{k}x{n} r{r} forward"), flops, forward);
        let hidden = forward().hidden;
        let flops = flops + 2.0 * (m * k * r + m * r * n) as f64;
        bench.time(&format!("lora {m}x{k}x{n} r{r} backward"), flops, || {
            let saved = LoraLinearSaved::<B> {
                x: Some(x.clone()),
                weight: Some(w.clone()),
                weight_dtype: BF16,
                a: a.clone(),
                b: b.clone(),
                adapter_dtypes: [DType::F32; 2],
                hidden: hidden.clone(),
                dropout: None,
                scale: 2.0,
            };
            B::fused_lora_linear_backward(saved, grad.clone(), [true, false, true, true])
        });
    }
}

fn attention(bench: &Bench) {
    let (h, d) = (32, 128);
    for (b, t) in [(16, 256), (16, 704), (4, 3072)] {
        let [q, k, v, grad] = [(); 4].map(|()| heads([b, h, t, d]));
        let spec = AttentionSpec::causal();
        let flops = 2.0 * (b * h * t * t * d) as f64; // two products, half of each masked
        let forward = || B::fused_attention(q.clone(), k.clone(), v.clone(), &spec);
        bench.time(&format!("attention b{b} h{h} t{t} d{d} forward"), flops, forward);
        let saved = forward();
        bench.time(&format!("attention b{b} h{h} t{t} d{d} backward"), 2.5 * flops, || {
            let saved = AttentionOutput::<B> {
                output: saved.output.clone(),
                logsumexp: saved.logsumexp.clone(),
            };
            let (q, k, v) = (q.clone(), k.clone(), v.clone());
            B::fused_attention_backward(q, k, v, &spec, saved, grad.clone(), [true; 3])
        });
    }
    let [q, k, v] = [(); 3].map(|()| heads([16, 16, 577, 64]));
    let spec = AttentionSpec::default();
    let flops = 4.0 * (16 * 16 * 577 * 577 * 64_usize) as f64;
    bench.time("attention full b16 h16 t577 d64 forward", flops, || {
        B::fused_attention(q.clone(), k.clone(), v.clone(), &spec)
    });
}

fn elementwise(bench: &Bench) {
    let (rows, d, mlp) = (11_264, 4096, 11_008);
    let (x, grad, weight) = (random([rows, d], BF16), random([rows, d], BF16), random([d], BF16));
    bench.time("rms_norm 11264x4096 forward", 0.0, || {
        B::fused_rms_norm(x.clone(), weight.clone(), 1e-5)
    });
    bench.time("rms_norm 11264x4096 backward", 0.0, || {
        let (x, w) = (x.clone(), weight.clone());
        B::fused_rms_norm_backward(x, w, 1e-5, grad.clone(), [true, false])
    });
    let (gate, up) = (random([rows, mlp], BF16), random([rows, mlp], BF16));
    let wide = random([rows, mlp], BF16);
    bench.time("swiglu 11264x11008 forward", 0.0, || B::fused_swiglu(gate.clone(), up.clone()));
    bench.time("swiglu 11264x11008 backward", 0.0, || {
        B::fused_swiglu_backward(gate.clone(), up.clone(), wide.clone(), [true, true])
    });
    let q = heads([16, 32, 704, 128]);
    let [cos, sin] = [(); 2].map(|()| random([1, 704, 64], DType::F32));
    bench.time("rope 16x32x704x128", 0.0, || B::fused_rope(q.clone(), cos.clone(), sin.clone()));
    let (x, weight, bias) =
        (random([9232, 1024], BF16), random([1024], BF16), random([1024], BF16));
    bench.time("layer_norm 9232x1024 forward", 0.0, || {
        B::fused_layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5)
    });
    let x = random([9232, 4096], BF16);
    bench.time("quick_gelu 9232x4096 forward", 0.0, || B::fused_quick_gelu(x.clone()));
}

fn losses(bench: &Bench) {
    let (n, d, vocab) = (2048, 4096, 32_000);
    let (hidden, teacher) = (random([n, d], BF16), random([n, d], BF16));
    let head = B::float_mul_scalar(random([d, vocab], BF16), 0.02.into());
    let ids: Vec<i32> = (0..n as i32).map(|i| i * 7919 % vocab as i32).collect();
    let targets = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [n]), &device());
    let targets = targets.into_primitive();
    let grad = random([n, 3], DType::F32);
    for (name, teacher) in [("ce", None), ("ce+kl", Some(teacher))] {
        bench.time(&format!("lm_head+{name} 2048x4096x32000 forward+backward"), 0.0, || {
            let (h, w, t) = (hidden.clone(), head.clone(), targets.clone());
            let out = B::fused_token_losses(h, w, t, teacher.clone(), 1.0);
            let (h, w, t) = (hidden.clone(), head.clone(), targets.clone());
            let needs = [true, false];
            (
                out,
                B::fused_token_losses_backward(h, w, t, teacher.clone(), 1.0, grad.clone(), needs),
            )
        });
    }
}

fn rest(bench: &Bench) {
    let features = random([16, 576, 4096], BF16);
    bench
        .time("divprune 16x576x4096 -> 57", 0.0, || B::fused_farthest_points(features.clone(), 57));
    // The adapters of a 7B model, r 128, all linear layers.
    let shapes: Vec<[usize; 2]> = (0..32)
        .flat_map(|_| {
            let square = [[4096, 128], [128, 4096]].repeat(4);
            let mlp = [[4096, 128], [128, 11_008], [4096, 128], [128, 11_008]];
            square.into_iter().chain(mlp).chain([[11_008, 128], [128, 4096]])
        })
        .collect();
    let config = AdamWConfig {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        grad_scale: 1.0,
        max_grad_norm: 1.0,
    };
    let f32s = |shape| random(shape, DType::F32);
    let grads: Vec<T> = shapes.iter().map(|shape| f32s(*shape)).collect();
    let mut state: Vec<[T; 3]> = shapes
        .iter()
        .map(|shape| {
            let v = f32s(*shape);
            [f32s(*shape), f32s(*shape), B::float_mul(v.clone(), v)]
        })
        .collect();
    bench.time("adamw+clip, 448 tensors, 320M", 0.0, || {
        let tensors = std::mem::take(&mut state)
            .into_iter()
            .zip(&grads)
            .map(|([param, m, v], grad)| AdamWTensor::<B> {
                param,
                grad: grad.clone(),
                m,
                v,
                lr: 1e-5,
                updates: 10,
            })
            .collect();
        state = B::fused_adamw(tensors, config).updated;
    });
}

/// One Llama block of 7B with adapters, frozen otherwise, as the training step runs it.
fn block(bench: &Bench) {
    type A = Autodiff<B>;
    let (d, mlp, r) = (4096, 11_008, 128);
    let make = |d_in: usize, d_out: usize| {
        let scaled = |shape: [usize; 2], dtype| {
            let x =
                Tensor::<A, 2>::random(shape, Distribution::Normal(0.0, 0.02), (&device(), dtype));
            x.require_grad().into_primitive().tensor()
        };
        let weight =
            Tensor::<A, 2>::from_primitive(TensorPrimitive::Float(scaled([d_in, d_out], BF16)));
        let weight = weight.detach().set_require_grad(false).into_primitive().tensor();
        let lora = Some((scaled([d_in, r], DType::F32), scaled([r, d_out], DType::F32)));
        BlockLinear { weight, lora }
    };
    let ones = || Tensor::<A, 1>::ones([d], (&device(), BF16)).into_primitive().tensor();
    let params = BlockParams {
        input_layernorm: ones(),
        q_proj: make(d, d),
        k_proj: make(d, d),
        v_proj: make(d, d),
        o_proj: make(d, d),
        post_attention_layernorm: ones(),
        gate_proj: make(d, mlp),
        up_proj: make(d, mlp),
        down_proj: make(mlp, d),
    };
    let weights = (4 * d * d + 3 * d * mlp) as f64;
    for (b, t, keep) in [(16, 253, Keep::All), (16, 768, Keep::All), (16, 768, Keep::Input)] {
        let wave = |shift: f64| {
            let angles = Tensor::<A, 3>::random(
                [1, t, 64],
                Distribution::Uniform(0.0, 6.0),
                (&device(), DType::F32),
            );
            angles.add_scalar(shift).cos().into_primitive().tensor()
        };
        let ctx = BlockContext::<A> {
            batch: b,
            heads: 32,
            kv_heads: 32,
            eps: 1e-5,
            cos: wave(0.0),
            sin: wave(1.5),
            attention: AttentionSpec::causal(),
            lora_scale: 2.0,
            dropout: None,
            keep,
        };
        let normal = Distribution::Normal(0.0, 1.0);
        let x = Tensor::<A, 2>::random([b * t, d], normal, (&device(), BF16)).require_grad();
        let flops = 2.0 * weights * (b * t) as f64;
        let forward =
            || dualspeed_ops::decoder_block(x.clone(), params.map(|param| param.clone()), &ctx);
        bench.time_apart(&format!("block b{b} t{t} lora {keep:?} forward"), flops, forward);
        bench.time_apart(
            &format!("block b{b} t{t} lora {keep:?} forward+backward"),
            2.0 * flops,
            || forward().sum().backward(),
        );
    }
}

/// Burn's own bodies on a few of the shapes.
fn stock(bench: &Bench) {
    let (x, w) = (random([11_264, 4096], BF16), random([4096, 11_008], BF16));
    bench.time_apart("product 11264x4096x11008", 2.0 * 11_264.0 * 4096.0 * 11_008.0, || {
        plain::linear::<B>(x.clone(), w.clone(), None)
    });
    let (x, weight) = (random([11_264, 4096], BF16), random([4096], BF16));
    bench.time_apart("rms_norm 11264x4096 forward", 0.0, || {
        plain::rms_norm::<B>(x.clone(), weight.clone(), 1e-5)
    });
    let (gate, up) = (random([11_264, 11_008], BF16), random([11_264, 11_008], BF16));
    bench.time_apart("swiglu 11264x11008 forward", 0.0, || {
        plain::swiglu::<B>(gate.clone(), up.clone())
    });
    let [q, k, v] = [(); 3].map(|()| heads([16, 32, 256, 128]));
    bench.time_apart("attention b16 h32 t256 d128 forward", 0.0, || {
        plain::attention::<B>(q.clone(), k.clone(), v.clone(), &AttentionSpec::causal())
    });
    let features = random([16, 576, 4096], BF16);
    bench.time_apart("divprune 16x576x4096 -> 57", 0.0, || {
        plain::farthest_points::<B>(features.clone(), 57)
    });
}

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    if filter == "plain" {
        return stock(&Bench { filter: String::new() });
    }
    let bench = Bench { filter };
    products(&bench);
    lora(&bench);
    attention(&bench);
    elementwise(&bench);
    losses(&bench);
    block(&bench);
    rest(&bench);
}
