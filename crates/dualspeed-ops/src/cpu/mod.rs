//! Fused bodies for the CPU backends.
//!
//! On the CPU elementwise work costs more than the products, so every operation here makes one pass over memory, in
//! parallel over rows, in vector code chosen at run time. The kernels know slices only; [`view`] brings tensors to
//! them and [`bodies`] is shared by the backends. Results do not depend on the scheduling of threads.

mod activation;
mod attention;
mod bodies;
mod gemm;
mod greedy_map;
mod linear;
mod losses;
mod norm;
mod points;
mod rope;
mod rows;
mod simd;
mod view;

#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "ndarray")]
mod ndarray;

/// Methods of [`Backend`](crate::Backend) that call the body of the given name.
macro_rules! delegate {
    ($($fused:ident => $body:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty;)*) => {
        $(fn $fused($($arg: $ty),*) -> $ret {
            $crate::cpu::bodies::$body::<Self>($($arg),*)
        })*
    };
}
use delegate;

/// All methods of [`Backend`](crate::Backend) on the shared bodies.
macro_rules! fused_methods {
    () => {
        fn computes_on_host() -> bool {
            true
        }

        $crate::cpu::delegate! {
            fused_linear => linear(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                bias: Option<FloatTensor<Self>>,
            ) -> FloatTensor<Self>;
            fused_linear_backward => linear_backward(
                saved: LinearSaved<Self>,
                grad: FloatTensor<Self>,
            ) -> LinearGrads<Self>;
            fused_lora_linear => lora_linear(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                bias: Option<FloatTensor<Self>>,
                adapter: LoraAdapter<Self>,
            ) -> LoraLinearOutput<Self>;
            fused_lora_linear_backward => lora_linear_backward(
                saved: LoraLinearSaved<Self>,
                grad: FloatTensor<Self>,
                needs: [bool; 4],
            ) -> LoraLinearGrads<Self>;
            fused_rms_norm => rms_norm(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                eps: f64,
            ) -> FloatTensor<Self>;
            fused_rms_norm_backward => rms_norm_backward(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                eps: f64,
                grad: FloatTensor<Self>,
                needs: [bool; 2],
            ) -> NormGrads<Self>;
            fused_layer_norm => layer_norm(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                bias: FloatTensor<Self>,
                eps: f64,
            ) -> FloatTensor<Self>;
            fused_layer_norm_backward => layer_norm_backward(
                x: FloatTensor<Self>,
                weight: FloatTensor<Self>,
                eps: f64,
                grad: FloatTensor<Self>,
                needs: [bool; 3],
            ) -> NormGrads<Self>;
            fused_gelu => gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;
            fused_gelu_backward => gelu_backward(
                x: FloatTensor<Self>,
                grad: FloatTensor<Self>,
            ) -> FloatTensor<Self>;
            fused_quick_gelu => quick_gelu(x: FloatTensor<Self>) -> FloatTensor<Self>;
            fused_quick_gelu_backward => quick_gelu_backward(
                x: FloatTensor<Self>,
                grad: FloatTensor<Self>,
            ) -> FloatTensor<Self>;
            fused_swiglu => swiglu(
                gate: FloatTensor<Self>,
                up: FloatTensor<Self>,
            ) -> FloatTensor<Self>;
            fused_swiglu_backward => swiglu_backward(
                gate: FloatTensor<Self>,
                up: FloatTensor<Self>,
                grad: FloatTensor<Self>,
                needs: [bool; 2],
            ) -> SwigluGrads<Self>;
            fused_attention => attention(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                spec: &AttentionSpec,
            ) -> AttentionOutput<Self>;
            fused_attention_backward => attention_backward(
                q: FloatTensor<Self>,
                k: FloatTensor<Self>,
                v: FloatTensor<Self>,
                spec: &AttentionSpec,
                forward: AttentionOutput<Self>,
                grad: FloatTensor<Self>,
                needs: [bool; 3],
            ) -> AttentionGrads<Self>;
            fused_token_losses => token_losses(
                hidden: FloatTensor<Self>,
                lm_head: FloatTensor<Self>,
                targets: IntTensor<Self>,
                teacher: Option<FloatTensor<Self>>,
                tau: f64,
            ) -> FloatTensor<Self>;
            fused_token_losses_backward => token_losses_backward(
                hidden: FloatTensor<Self>,
                lm_head: FloatTensor<Self>,
                targets: IntTensor<Self>,
                teacher: Option<FloatTensor<Self>>,
                tau: f64,
                grad: FloatTensor<Self>,
                needs: [bool; 2],
            ) -> TokenLossesGrads<Self>;
            fused_farthest_points => farthest_points(
                features: FloatTensor<Self>,
                keep: usize,
            ) -> IntTensor<Self>;
            fused_greedy_map => greedy_map(
                features: FloatTensor<Self>,
                keep: usize,
            ) -> IntTensor<Self>;
        }

        fn fused_rope(
            x: FloatTensor<Self>,
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            $crate::cpu::bodies::rope::<Self>(x, cos, sin, 1.0)
        }

        fn fused_rope_backward(
            cos: FloatTensor<Self>,
            sin: FloatTensor<Self>,
            grad: FloatTensor<Self>,
        ) -> FloatTensor<Self> {
            $crate::cpu::bodies::rope::<Self>(grad, cos, sin, -1.0)
        }
    };
}
use fused_methods;
