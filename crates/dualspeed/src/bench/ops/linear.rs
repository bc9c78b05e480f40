//! Products and low-rank adapters.

use burn::tensor::DType;
use burn::tensor::ops::FloatTensor;
use dualspeed_ops::{Backend, LinearSaved, LoraAdapter, LoraLinearSaved};

use super::shapes::Shapes;
use super::timer::OpTimer;

pub(super) fn products<B: Backend>(
    timer: &mut OpTimer<'_, B>,
    shapes: &Shapes,
) -> anyhow::Result<()> {
    let dtype = timer.dtype;
    for [m, k, n] in shapes.products.iter().copied() {
        let (x, w, grad) = (timer.random([m, k]), timer.random([k, n]), timer.random([m, n]));
        let flops = 2.0 * (m * k * n) as f64;
        timer.time(&format!("product {m}x{k}x{n}"), flops, || {
            B::fused_linear(x.clone(), w.clone(), None)
        })?;
        let saved = |x: Option<&FloatTensor<B>>, w: Option<&FloatTensor<B>>| LinearSaved::<B> {
            x: x.cloned(),
            weight: w.cloned(),
            weight_dtype: dtype,
            bias_dtype: None,
        };
        timer.time(&format!("product {m}x{k}x{n} dx"), flops, || {
            B::fused_linear_backward(saved(None, Some(&w)), grad.clone())
        })?;
        timer.time(&format!("product {m}x{k}x{n} dw"), flops, || {
            B::fused_linear_backward(saved(Some(&x), None), grad.clone())
        })?;
    }
    Ok(())
}

pub(super) fn lora<B: Backend>(timer: &mut OpTimer<'_, B>, shapes: &Shapes) -> anyhow::Result<()> {
    let (dtype, r) = (timer.dtype, shapes.rank);
    for [m, k, n] in shapes.lora.iter().copied() {
        let (x, w, grad) = (timer.random([m, k]), timer.random([k, n]), timer.random([m, n]));
        let (a, b) = (timer.random_as([k, r], DType::F32), timer.random_as([r, n], DType::F32));
        let flops = 2.0 * (m * k * n + m * k * r + m * r * n) as f64;
        let adapter = LoraAdapter::<B> { a, b, scale: 2.0, dropout: None };
        let forward = || B::fused_lora_linear(x.clone(), w.clone(), None, adapter.clone());
        timer.time(&format!("lora {m}x{k}x{n} r{r} forward"), flops, forward)?;
        let hidden = forward().hidden;
        let flops = flops + 2.0 * (m * k * r + m * r * n) as f64;
        timer.time(&format!("lora {m}x{k}x{n} r{r} backward"), flops, || {
            let saved = LoraLinearSaved::<B> {
                x: Some(x.clone()),
                weight: Some(w.clone()),
                weight_dtype: dtype,
                bias_dtype: None,
                adapter: adapter.clone(),
                adapter_dtypes: [DType::F32; 2],
                hidden: hidden.clone(),
                dropped: None,
            };
            B::fused_lora_linear_backward(saved, grad.clone(), [true, false, true, true])
        })?;
    }
    Ok(())
}
