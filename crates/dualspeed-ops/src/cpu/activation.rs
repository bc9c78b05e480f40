//! GELU, quick GELU, SwiGLU and their gradients, one pass each.

use super::rows::{for_rows, zeros};
use super::simd::{multiversion, normal, sigmoid};

/// Activations are flat: pieces of this many elements.
const FLAT: usize = 1;

macro_rules! unary {
    ($name:ident, $kernel:ident, $doc:literal, |$x:ident| $value:expr) => {
        multiversion! {
            fn $kernel(x: &[f32], out: &mut [f32]) {
                for (out, $x) in out.iter_mut().zip(x) {
                    let $x = *$x;
                    *out = $value;
                }
            }
        }

        #[doc = $doc]
        pub(super) fn $name(x: &[f32]) -> Vec<f32> {
            let mut out = zeros(x.len());
            for_rows(&mut out, FLAT, |start, piece| $kernel(&x[start..start + piece.len()], piece));
            out
        }
    };
}

macro_rules! binary {
    ($name:ident, $kernel:ident, $doc:literal, |$x:ident, $y:ident| $value:expr) => {
        multiversion! {
            fn $kernel(x: &[f32], y: &[f32], out: &mut [f32]) {
                for ((out, $x), $y) in out.iter_mut().zip(x).zip(y) {
                    let ($x, $y) = (*$x, *$y);
                    *out = $value;
                }
            }
        }

        #[doc = $doc]
        pub(super) fn $name(x: &[f32], y: &[f32]) -> Vec<f32> {
            let mut out = zeros(x.len());
            for_rows(&mut out, FLAT, |start, piece| {
                let range = start..start + piece.len();
                $kernel(&x[range.clone()], &y[range], piece);
            });
            out
        }
    };
}

unary!(gelu, gelu_kernel, "`x Phi(x)`.", |x| x * normal(x).0);
binary!(
    gelu_backward,
    gelu_backward_kernel,
    "Gradient from the input and the output's gradient.",
    |x, grad| {
        let (cdf, density) = normal(x);
        grad * (cdf + x * density)
    }
);
unary!(quick_gelu, quick_gelu_kernel, "`x sigmoid(1.702 x)`.", |x| x * sigmoid(1.702 * x));
binary!(
    quick_gelu_backward,
    quick_gelu_backward_kernel,
    "Gradient from the input and the output's gradient.",
    |x, grad| {
        let s = sigmoid(1.702 * x);
        grad * (s + 1.702 * x * s * (1.0 - s))
    }
);
binary!(swiglu, swiglu_kernel, "`silu(gate) * up`.", |gate, up| gate * sigmoid(gate) * up);
// The gradient of `up` is the forward pass with the output's gradient in the place of `up`.

multiversion! {
    fn swiglu_gate_kernel(gate: &[f32], up: &[f32], grad: &[f32], out: &mut [f32]) {
        for (((out, gate), up), grad) in out.iter_mut().zip(gate).zip(up).zip(grad) {
            let s = sigmoid(*gate);
            *out = grad * up * (s * (1.0 + gate * (1.0 - s)));
        }
    }
}

/// Gradient of [`swiglu`] for the gate.
pub(super) fn swiglu_backward_gate(gate: &[f32], up: &[f32], grad: &[f32]) -> Vec<f32> {
    let mut out = zeros(gate.len());
    for_rows(&mut out, FLAT, |start, piece| {
        let range = start..start + piece.len();
        swiglu_gate_kernel(&gate[range.clone()], &up[range.clone()], &grad[range], piece);
    });
    out
}
