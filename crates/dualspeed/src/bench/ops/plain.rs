//! Burn's own bodies on a few of the shapes.

use dualspeed_ops::{AttentionSpec, Backend, plain};

use super::{Ops, Shapes};

pub(super) fn run<B: Backend>(bench: &mut Ops<'_, B>, shapes: &Shapes) -> anyhow::Result<()> {
    let (rows, d, mlp) = (shapes.rows(), shapes.d, shapes.mlp);
    let (x, w) = (bench.random([rows, d]), bench.random([d, mlp]));
    let flops = 2.0 * (rows * d * mlp) as f64;
    bench.time_apart(&format!("product {rows}x{d}x{mlp} plain"), flops, || {
        plain::linear::<B>(x.clone(), w.clone(), None)
    })?;
    let weight = bench.random([d]);
    bench.time_apart(&format!("rms_norm {rows}x{d} forward plain"), 0.0, || {
        plain::rms_norm::<B>(x.clone(), weight.clone(), 1e-5)
    })?;
    let (gate, up) = (bench.random([rows, mlp]), bench.random([rows, mlp]));
    bench.time_apart(&format!("swiglu {rows}x{mlp} forward plain"), 0.0, || {
        plain::swiglu::<B>(gate.clone(), up.clone())
    })?;
    let ((b, t), h, head) = (shapes.attention[0], shapes.heads, shapes.head);
    let q = bench.heads([b, h, t, head]);
    let [k, v] = [(); 2].map(|()| bench.heads([b, shapes.kv_heads, t, head]));
    bench.time_apart(&format!("attention b{b} h{h} t{t} d{head} forward plain"), 0.0, || {
        plain::attention::<B>(q.clone(), k.clone(), v.clone(), &AttentionSpec::causal())
    })?;
    let (images, n) = (shapes.images, shapes.patches);
    let keep = n / 10;
    let features = bench.random([images, n, d]);
    bench.time_apart(&format!("divprune {images}x{n}x{d} -> {keep} plain"), 0.0, || {
        plain::farthest_points::<B>(features.clone(), keep)
    })
}
