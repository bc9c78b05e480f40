//! One generic function on every backend compiled in: a fused attention and the gradient through it.
//! `cargo run --release --example swap_backend --features flex`

use burn::tensor::ElementConversion;
use clap::ValueEnum;
use dualspeed::backend::{BackendChoice, BackendTask};
use dualspeed::ops::{AttentionSpec, attention};
use dualspeed::prelude::*;

/// Inputs made once on the host, so that every backend sees the same numbers.
fn inputs(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i as f32 * 0.37).sin()).collect()
}

/// The sum of squares of causal attention, and the norm of its gradient by the queries.
fn measure<B: AutodiffBackend>(device: &B::Device) -> (f32, f32) {
    let shape = [1, 2, 16, 8]; // [batch, heads, tokens, head size]
    let values = inputs(shape.iter().product());
    let qkv = |scale: f32| {
        Tensor::<B, 1>::from_floats(values.as_slice(), device).reshape(shape).mul_scalar(scale)
    };
    let q = qkv(1.0).require_grad();
    let spec = AttentionSpec { causal: true, ..AttentionSpec::default() };
    let loss = attention(q.clone(), qkv(0.5), qkv(-2.0), &spec).powi_scalar(2).sum();
    let gradients = loss.backward();
    let norm = q.grad(&gradients).map(|g| g.powi_scalar(2).sum().sqrt().into_scalar());
    (loss.into_scalar().elem(), norm.map_or(f32::NAN, |norm| norm.elem()))
}

/// Hands the generic function to a backend chosen at run time.
struct Measure;

impl BackendTask for Measure {
    type Output = (f32, f32);

    fn run<B: AutodiffBackend>(self, device: &B::Device) -> (f32, f32) {
        measure::<B>(device)
    }
}

fn main() {
    println!("{:<10} {:>12} {:>16}", "backend", "loss", "gradient norm");
    for choice in BackendChoice::value_variants() {
        let (loss, norm) = choice.run(0, Measure);
        println!("{:<10} {loss:>12.6} {norm:>16.6}", choice.name());
    }
}
