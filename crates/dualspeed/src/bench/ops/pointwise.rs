//! Attention, norms, activations, rotary embedding.

use burn::tensor::DType;
use dualspeed_ops::{AttentionOutput, AttentionSpec, Backend};

use super::shapes::Shapes;
use super::timer::OpTimer;

pub(super) fn attention<B: Backend>(
    timer: &mut OpTimer<'_, B>,
    shapes: &Shapes,
) -> anyhow::Result<()> {
    let (h, kv, d) = (shapes.heads, shapes.kv_heads, shapes.head);
    for (b, t) in shapes.attention {
        let [q, grad] = [(); 2].map(|()| timer.heads([b, h, t, d]));
        let [k, v] = [(); 2].map(|()| timer.heads([b, kv, t, d]));
        let spec = AttentionSpec::causal();
        let flops = 2.0 * (b * h * t * t * d) as f64; // two products, half of each masked
        let forward = || B::fused_attention(q.clone(), k.clone(), v.clone(), &spec);
        timer.time(&format!("attention b{b} h{h} t{t} d{d} forward"), flops, forward)?;
        let saved = forward();
        timer.time(&format!("attention b{b} h{h} t{t} d{d} backward"), 2.5 * flops, || {
            let saved = AttentionOutput::<B> {
                output: saved.output.clone(),
                logsumexp: saved.logsumexp.clone(),
            };
            let (q, k, v) = (q.clone(), k.clone(), v.clone());
            B::fused_attention_backward(q, k, v, &spec, saved, grad.clone(), [true; 3])
        })?;
    }
    let (b, h, t, d) = (shapes.images, shapes.tower_heads, shapes.patches + 1, shapes.tower_head);
    let [q, k, v] = [(); 3].map(|()| timer.heads([b, h, t, d]));
    let spec = AttentionSpec::default();
    let flops = 4.0 * (b * h * t * t * d) as f64;
    timer.time(&format!("attention full b{b} h{h} t{t} d{d} forward"), flops, || {
        B::fused_attention(q.clone(), k.clone(), v.clone(), &spec)
    })
}

pub(super) fn elementwise<B: Backend>(
    timer: &mut OpTimer<'_, B>,
    shapes: &Shapes,
) -> anyhow::Result<()> {
    let (rows, d, mlp) = (shapes.rows(), shapes.d, shapes.mlp);
    let (x, grad, weight) = (timer.random([rows, d]), timer.random([rows, d]), timer.random([d]));
    timer.time(&format!("rms_norm {rows}x{d} forward"), 0.0, || {
        B::fused_rms_norm(x.clone(), weight.clone(), 1e-5)
    })?;
    timer.time(&format!("rms_norm {rows}x{d} backward"), 0.0, || {
        let (x, w) = (x.clone(), weight.clone());
        B::fused_rms_norm_backward(x, w, 1e-5, grad.clone(), [true, false])
    })?;
    let [gate, up, wide] = [(); 3].map(|()| timer.random([rows, mlp]));
    timer.time(&format!("swiglu {rows}x{mlp} forward"), 0.0, || {
        B::fused_swiglu(gate.clone(), up.clone())
    })?;
    timer.time(&format!("swiglu {rows}x{mlp} backward"), 0.0, || {
        B::fused_swiglu_backward(gate.clone(), up.clone(), wide.clone(), [true, true])
    })?;
    let ((b, t), h, head) = (shapes.attention[1], shapes.heads, shapes.head);
    let q = timer.heads([b, h, t, head]);
    let [cos, sin] = [(); 2].map(|()| timer.random_as([1, t, head / 2], DType::F32));
    timer.time(&format!("rope {b}x{h}x{t}x{head}"), 0.0, || {
        B::fused_rope(q.clone(), cos.clone(), sin.clone())
    })?;
    let rows = shapes.images * (shapes.patches + 1);
    let (d, mlp) = (shapes.tower_heads * shapes.tower_head, shapes.tower_mlp);
    let (x, weight, bias) = (timer.random([rows, d]), timer.random([d]), timer.random([d]));
    timer.time(&format!("layer_norm {rows}x{d} forward"), 0.0, || {
        B::fused_layer_norm(x.clone(), weight.clone(), bias.clone(), 1e-5)
    })?;
    let x = timer.random([rows, mlp]);
    timer.time(&format!("quick_gelu {rows}x{mlp} forward"), 0.0, || B::fused_quick_gelu(x.clone()))
}
