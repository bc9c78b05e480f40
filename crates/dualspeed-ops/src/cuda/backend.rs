//! burn-cuda's backend with the fast bodies, and the plain ones where those do not serve.

use burn::tensor::ops::{FloatTensor, FloatTensorOps, IntTensor};
use burn::tensor::{DType, Element, Shape, TensorData, try_read_sync};
use burn_cubecl::element::BoolElement;
use burn_cubecl::{CubeBackend, FloatElement, IntElement};
use cubecl::cuda::CudaRuntime;

use super::{
    adamw, attention, cast, dropout, elementwise, linear, losses, points, queue, select, transfer,
};
use crate::backend;
use crate::dropout::Dropout;
use crate::types::*;
use crate::{Backend, plain};

/// Runs a plain body, after what waits to be sent: its kernels are Burn's own.
fn slow<T>(body: impl FnOnce() -> T) -> T {
    queue::flush();
    body()
}

/// The plain body where the fast one does not serve.
trait OrSlow<T> {
    fn or_slow(self, body: impl FnOnce() -> T) -> T;
}

impl<T> OrSlow<T> for Option<T> {
    fn or_slow(self, body: impl FnOnce() -> T) -> T {
        self.unwrap_or_else(|| slow(body))
    }
}

/// burn-cuda without fusion: its alias is this backend then.
impl<F, I, T> Backend for CubeBackend<CudaRuntime, F, I, T>
where
    F: FloatElement,
    I: IntElement,
    T: BoolElement,
{
    fn batched<R>(f: impl FnOnce() -> R) -> R {
        queue::batched(f)
    }

    fn memory(device: &Self::Device) -> Option<DeviceMemory> {
        queue::memory(device)
    }

    fn read_later(tensor: FloatTensor<Self>) -> ReadLater {
        transfer::read_later(&tensor).unwrap_or_else(|| {
            queue::flush();
            Box::new(move || {
                let data = try_read_sync(Self::float_into_data(tensor));
                let data = data.ok_or("the device cannot be read synchronously")?;
                let data = data.map_err(|error| error.to_string())?;
                Ok(data.iter::<f32>().collect())
            })
        })
    }

    fn upload(
        parts: &[&[u8]],
        shape: Shape,
        dtype: DType,
        device: &Self::Device,
    ) -> FloatTensor<Self> {
        transfer::upload(parts, &shape, dtype, device).or_slow(|| {
            let data = TensorData::from_bytes_vec(parts.concat(), shape, dtype);
            Self::float_from_data(data, device)
        })
    }

    fn fused_dropout(
        x: FloatTensor<Self>,
        dropout: &Dropout<Self>,
        mut sum: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        let Dropout { keys, place, p } = dropout;
        dropout::dropout(&x, &keys.on_device, *place, *p, &mut sum)
            .or_slow(|| crate::dropout::dropout::<Self>(x, dropout, sum))
    }

    fn fused_linear_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        residual: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        linear::linear(x.clone(), weight.clone(), bias.clone(), Some(residual.clone()))
            .or_slow(|| Self::float_add(residual, plain::linear::<Self>(x, weight, bias)))
    }

    fn fused_lora_linear_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        adapter: LoraAdapter<Self>,
        residual: FloatTensor<Self>,
    ) -> LoraLinearOutput<Self> {
        let around = Some(residual.clone());
        linear::lora_linear::<Self>(&x, &weight, bias.as_ref(), &adapter, around).or_slow(|| {
            let out = plain::lora_linear::<Self>(x, weight, bias, adapter);
            LoraLinearOutput { output: Self::float_add(residual, out.output), ..out }
        })
    }

    fn fused_linear_backward_add(
        saved: LinearSaved<Self>,
        grad: FloatTensor<Self>,
        mut sum: Option<FloatTensor<Self>>,
    ) -> LinearGrads<Self> {
        linear::linear_backward::<Self>(&saved, &grad, &mut sum).or_slow(|| {
            let out = plain::linear_backward::<Self>(saved, grad);
            LinearGrads { x: backend::add::<Self>(sum, out.x), ..out }
        })
    }

    fn fused_lora_linear_backward_add(
        saved: LoraLinearSaved<Self>,
        grad: FloatTensor<Self>,
        needs: [bool; 4],
        sum: Option<FloatTensor<Self>>,
    ) -> LoraLinearGrads<Self> {
        match linear::lora_serves::<Self>(&saved, &grad) {
            Some(element) => linear::lora_linear_backward(saved, element, grad, needs, sum),
            None => slow(|| {
                let out = plain::lora_linear_backward::<Self>(saved, grad, needs);
                LoraLinearGrads { x: backend::add::<Self>(sum, out.x), ..out }
            }),
        }
    }

    fn fused_rms_norm_backward_add(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        grad: FloatTensor<Self>,
        around: FloatTensor<Self>,
        needs: [bool; 2],
    ) -> NormGrads<Self> {
        let (x_, weight_, grad_) = (x.clone(), weight.clone(), grad.clone());
        let own = around.can_mut();
        let (around_, needs_) = (Some((around.clone(), own)), [needs[0], needs[1], false]);
        match elementwise::norm_backward(x_, weight_, eps, grad_, around_, false, needs_) {
            Some([x, weight, bias]) => NormGrads { x, weight, bias },
            None => {
                queue::flush();
                let out = plain::rms_norm_backward::<Self>(x, weight, eps, grad, needs);
                NormGrads { x: out.x.map(|x| Self::float_add(around, x)), ..out }
            }
        }
    }

    fn fused_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
    ) -> FloatTensor<Self> {
        linear::linear(x.clone(), weight.clone(), bias.clone(), None)
            .or_slow(|| plain::linear::<Self>(x, weight, bias))
    }

    fn fused_linear_backward(
        saved: LinearSaved<Self>,
        grad: FloatTensor<Self>,
    ) -> LinearGrads<Self> {
        linear::linear_backward::<Self>(&saved, &grad, &mut None)
            .or_slow(|| plain::linear_backward::<Self>(saved, grad))
    }

    fn fused_lora_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: Option<FloatTensor<Self>>,
        adapter: LoraAdapter<Self>,
    ) -> LoraLinearOutput<Self> {
        linear::lora_linear::<Self>(&x, &weight, bias.as_ref(), &adapter, None)
            .or_slow(|| plain::lora_linear::<Self>(x, weight, bias, adapter))
    }

    fn fused_lora_linear_backward(
        saved: LoraLinearSaved<Self>,
        grad: FloatTensor<Self>,
        needs: [bool; 4],
    ) -> LoraLinearGrads<Self> {
        Self::fused_lora_linear_backward_add(saved, grad, needs, None)
    }

    fn fused_rms_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        elementwise::norm(x.clone(), weight.clone(), None, eps)
            .or_slow(|| plain::rms_norm::<Self>(x, weight, eps))
    }

    fn fused_rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        grad: FloatTensor<Self>,
        needs: [bool; 2],
    ) -> NormGrads<Self> {
        let (x_, weight_, grad_) = (x.clone(), weight.clone(), grad.clone());
        let needs_ = [needs[0], needs[1], false];
        match elementwise::norm_backward(x_, weight_, eps, grad_, None, false, needs_) {
            Some([x, weight, bias]) => NormGrads { x, weight, bias },
            None => slow(|| plain::rms_norm_backward::<Self>(x, weight, eps, grad, needs)),
        }
    }

    fn fused_layer_norm(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        eps: f64,
    ) -> FloatTensor<Self> {
        elementwise::norm(x.clone(), weight.clone(), Some(bias.clone()), eps)
            .or_slow(|| plain::layer_norm::<Self>(x, weight, bias, eps))
    }

    fn fused_layer_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        eps: f64,
        grad: FloatTensor<Self>,
        needs: [bool; 3],
    ) -> NormGrads<Self> {
        let (x_, weight_, grad_) = (x.clone(), weight.clone(), grad.clone());
        match elementwise::norm_backward(x_, weight_, eps, grad_, None, true, needs) {
            Some([x, weight, bias]) => NormGrads { x, weight, bias },
            None => slow(|| plain::layer_norm_backward::<Self>(x, weight, eps, grad, needs)),
        }
    }

    fn fused_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::activation("gelu", x.clone(), None).or_slow(|| plain::gelu::<Self>(x))
    }

    fn fused_gelu_backward(x: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::activation("gelu", x.clone(), Some(grad.clone()))
            .or_slow(|| plain::gelu_backward::<Self>(x, grad))
    }

    fn fused_quick_gelu(x: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::activation("quick_gelu", x.clone(), None)
            .or_slow(|| plain::quick_gelu::<Self>(x))
    }

    fn fused_quick_gelu_backward(
        x: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        elementwise::activation("quick_gelu", x.clone(), Some(grad.clone()))
            .or_slow(|| plain::quick_gelu_backward::<Self>(x, grad))
    }

    fn fused_swiglu(gate: FloatTensor<Self>, up: FloatTensor<Self>) -> FloatTensor<Self> {
        elementwise::swiglu(gate.clone(), up.clone()).or_slow(|| plain::swiglu::<Self>(gate, up))
    }

    fn fused_swiglu_backward(
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        needs: [bool; 2],
    ) -> SwigluGrads<Self> {
        let own = [gate.can_mut(), up.can_mut()];
        let (gate_, up_, grad_) = (gate.clone(), up.clone(), grad.clone());
        match elementwise::swiglu_backward([gate_, up_], own, grad_, needs) {
            Some([gate, up]) => SwigluGrads { gate, up },
            None => slow(|| plain::swiglu_backward::<Self>(gate, up, grad, needs)),
        }
    }

    fn fused_rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let own = x.can_mut();
        elementwise::rope(x.clone(), cos.clone(), sin.clone(), 1.0, own)
            .or_slow(|| plain::rope::<Self>(x, cos, sin))
    }

    fn fused_rope_backward(
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        let own = grad.can_mut();
        elementwise::rope(grad.clone(), cos.clone(), sin.clone(), -1.0, own)
            .or_slow(|| plain::rope::<Self>(grad, cos, Self::float_neg(sin)))
    }

    fn fused_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: &AttentionSpec,
    ) -> AttentionOutput<Self> {
        attention::attention::<Self>([&q, &k, &v], spec)
            .or_slow(|| plain::attention::<Self>(q, k, v, spec))
    }

    fn fused_attention_backward(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        spec: &AttentionSpec,
        forward: AttentionOutput<Self>,
        grad: FloatTensor<Self>,
        needs: [bool; 3],
    ) -> AttentionGrads<Self> {
        attention::attention_backward::<Self>([&q, &k, &v], spec, &forward, &grad, needs)
            .or_slow(|| plain::attention_backward::<Self>(q, k, v, spec, forward, grad, needs))
    }

    fn fused_rotary_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        [cos, sin]: [FloatTensor<Self>; 2],
        spec: &AttentionSpec,
    ) -> RotaryAttentionOutput<Self> {
        match attention::rotary_attention([&q, &k, &v], [&cos, &sin], spec) {
            Some(attention) => RotaryAttentionOutput { q, k, rotated: false, attention },
            None => backend::rotary_attention(q, k, v, [cos, sin], spec),
        }
    }

    fn fused_rotary_attention_backward(
        v: FloatTensor<Self>,
        [cos, sin]: [FloatTensor<Self>; 2],
        spec: &AttentionSpec,
        forward: RotaryAttentionOutput<Self>,
        grad: FloatTensor<Self>,
    ) -> AttentionGrads<Self> {
        let RotaryAttentionOutput { q, k, rotated, attention } = &forward;
        let grads = (!rotated).then(|| {
            attention::rotary_attention_backward([q, k, &v], [&cos, &sin], spec, attention, &grad)
        });
        match grads.flatten() {
            Some(grads) => grads,
            None => backend::rotary_attention_backward(v, [cos, sin], spec, forward, grad),
        }
    }

    fn fused_token_losses(
        hidden: FloatTensor<Self>,
        lm_head: FloatTensor<Self>,
        targets: IntTensor<Self>,
        teacher: Option<FloatTensor<Self>>,
        tau: f64,
    ) -> FloatTensor<Self> {
        losses::token_losses(&hidden, &lm_head, &targets, teacher.as_ref(), tau)
            .or_slow(|| plain::token_losses::<Self>(hidden, lm_head, targets, teacher, tau))
    }

    fn fused_token_losses_backward(
        hidden: FloatTensor<Self>,
        lm_head: FloatTensor<Self>,
        targets: IntTensor<Self>,
        teacher: Option<FloatTensor<Self>>,
        tau: f64,
        grad: FloatTensor<Self>,
        needs: [bool; 2],
    ) -> TokenLossesGrads<Self> {
        let teacher_ = teacher.as_ref();
        losses::token_losses_backward::<Self>(
            &hidden, &lm_head, &targets, teacher_, tau, &grad, needs,
        )
        .or_slow(|| {
            plain::token_losses_backward::<Self>(
                hidden, lm_head, targets, teacher, tau, grad, needs,
            )
        })
    }

    fn fused_cast(tensors: Vec<FloatTensor<Self>>, dtype: DType) -> Vec<FloatTensor<Self>> {
        cast::cast_many(tensors, dtype)
    }

    fn fused_select_rows(x: FloatTensor<Self>, ids: IntTensor<Self>) -> FloatTensor<Self> {
        slow(|| Self::float_select(x, 0, ids))
    }

    fn fused_select_rows_backward(
        ids: IntTensor<Self>,
        n: usize,
        grad: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        select::select_rows_backward(&grad, &ids, n)
            .or_slow(|| plain::select_rows_backward::<Self>(ids, n, grad))
    }

    fn fused_farthest_points(features: FloatTensor<Self>, keep: usize) -> IntTensor<Self> {
        points::farthest_points(&features, keep, <I as Element>::dtype())
            .or_slow(|| plain::farthest_points::<Self>(features, keep))
    }

    fn fused_greedy_map(features: FloatTensor<Self>, keep: usize) -> IntTensor<Self> {
        points::greedy_map(&features, keep, <I as Element>::dtype())
            .or_slow(|| plain::greedy_map::<Self>(features, keep))
    }

    fn fused_adamw(
        tensors: Vec<AdamWTensor<Self>>,
        guard: AdamWGuard<Self>,
        config: AdamWConfig,
    ) -> AdamWOutput<Self> {
        adamw::adamw::<Self>(tensors, guard, config).unwrap_or_else(|(tensors, guard)| {
            queue::flush();
            plain::adamw::<Self>(tensors, guard, config)
        })
    }
}
