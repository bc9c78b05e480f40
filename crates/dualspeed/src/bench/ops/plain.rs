//! Burn's own bodies on a few of the shapes.

use dualspeed_ops::{AttentionSpec, Backend, plain};

use super::shapes::Shapes;
use super::timer::OpTimer;

pub(super) fn run<B: Backend>(timer: &mut OpTimer<'_, B>, shapes: &Shapes) -> anyhow::Result<()> {
    let (rows, d, mlp) = (shapes.rows(), shapes.d, shapes.mlp);
    let (x, w) = (timer.random([rows, d]), timer.random([d, mlp]));
    let flops = 2.0 * (rows * d * mlp) as f64;
    timer.time_apart(&format!("product {rows}x{d}x{mlp} plain"), flops, || {
        plain::linear::<B>(x.clone(), w.clone(), None)
    })?;
    let weight = timer.random([d]);
    timer.time_apart(&format!("rms_norm {rows}x{d} forward plain"), 0.0, || {
        plain::rms_norm::<B>(x.clone(), weight.clone(), 1e-5)
    })?;
    let (gate, up) = (timer.random([rows, mlp]), timer.random([rows, mlp]));
    timer.time_apart(&format!("swiglu {rows}x{mlp} forward plain"), 0.0, || {
        plain::swiglu::<B>(gate.clone(), up.clone())
    })?;
    let ((b, t), h, head) = (shapes.attention[0], shapes.heads, shapes.head);
    let q = timer.heads([b, h, t, head]);
    let [k, v] = [(); 2].map(|()| timer.heads([b, shapes.kv_heads, t, head]));
    timer.time_apart(&format!("attention b{b} h{h} t{t} d{head} forward plain"), 0.0, || {
        plain::attention::<B>(q.clone(), k.clone(), v.clone(), &AttentionSpec::causal())
    })?;
    let (images, n) = (shapes.images, shapes.patches);
    let keep = n / 10;
    let features = timer.random([images, n, d]);
    timer.time_apart(&format!("divprune {images}x{n}x{d} -> {keep} plain"), 0.0, || {
        plain::farthest_points::<B>(features.clone(), keep)
    })
}
