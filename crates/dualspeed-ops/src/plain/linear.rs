//! Linear layers, with and without LoRA.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Tensor, TensorMetadata};

use super::{cast, primitive, reshape, rows, tensor, widen, with_last};
use crate::dropout::{self, Dropout};
use crate::types::*;

/// Default body of [`Backend::fused_linear`](crate::Backend::fused_linear).
pub fn linear<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
) -> FloatTensor<B> {
    let shape = with_last(&x.shape(), weight.shape()[1]);
    let dtype = x.dtype();
    let mut y = rows::<B>(x).matmul(cast(tensor(weight), dtype)); // [rows, d_out]
    if let Some(bias) = bias {
        y = y + cast(tensor::<B, 1>(bias), dtype).unsqueeze();
    }
    reshape(y, shape)
}

/// Default body of [`Backend::fused_linear_backward`](crate::Backend::fused_linear_backward).
pub fn linear_backward<B: Backend>(saved: LinearSaved<B>, grad: FloatTensor<B>) -> LinearGrads<B> {
    let (shape, dtype) = (grad.shape(), grad.dtype());
    let grad = rows::<B>(grad); // [rows, d_out]
    LinearGrads {
        x: saved.weight.map(|weight| {
            let shape = with_last(&shape, weight.shape()[0]);
            let weight = cast(tensor::<B, 2>(weight), dtype);
            reshape(grad.clone().matmul(weight.transpose()), shape)
        }),
        weight: saved.x.map(|x| {
            let weight = rows::<B>(x).transpose().matmul(grad.clone());
            primitive(cast(weight, saved.weight_dtype))
        }),
        bias: saved.bias_dtype.map(|dtype| column_sum(grad, dtype)),
    }
}

/// Default body of [`Backend::fused_lora_linear`](crate::Backend::fused_lora_linear).
pub fn lora_linear<B: Backend>(
    x: FloatTensor<B>,
    weight: FloatTensor<B>,
    bias: Option<FloatTensor<B>>,
    adapter: LoraAdapter<B>,
) -> LoraLinearOutput<B> {
    let LoraAdapter { a, b, scale, dropout } = adapter;
    let (shape, dtype) = (with_last(&x.shape(), weight.shape()[1]), x.dtype());
    let [weight, a, b] = [weight, a, b].map(|weight| cast(tensor::<B, 2>(weight), dtype));
    let x = rows::<B>(x);
    let dropped = match dropout {
        Some(dropout) => dropped(x.clone(), &dropout),
        None => x.clone(),
    };
    let hidden = dropped.matmul(a); // [rows, r]
    let mut y = x.matmul(weight) + hidden.clone().matmul(b).mul_scalar(scale); // [rows, d_out]
    if let Some(bias) = bias {
        y = y + cast(tensor::<B, 1>(bias), dtype).unsqueeze();
    }
    LoraLinearOutput { output: reshape(y, shape), hidden: primitive(hidden), dropped: None }
}

/// Default body of [`Backend::fused_lora_linear_backward`](crate::Backend::fused_lora_linear_backward).
pub fn lora_linear_backward<B: Backend>(
    saved: LoraLinearSaved<B>,
    grad: FloatTensor<B>,
    needs: [bool; 4],
) -> LoraLinearGrads<B> {
    let [needs_x, needs_weight, needs_a, needs_b] = needs;
    let (shape, dtype) = (grad.shape(), grad.dtype());
    let [a_dtype, b_dtype] = saved.adapter_dtypes;
    let LoraAdapter { a, b, scale, dropout } = saved.adapter;
    let grad = rows::<B>(grad); // [rows, d_out]
    let [a, b] = [a, b].map(|weight| cast(tensor::<B, 2>(weight), dtype));
    let grad_hidden = (needs_x || needs_a) // [rows, r]
        .then(|| grad.clone().matmul(b.transpose()).mul_scalar(scale));

    let x = match (needs_x, saved.weight, grad_hidden.clone()) {
        (true, Some(weight), Some(grad_hidden)) => {
            let shape = with_last(&shape, weight.shape()[0]);
            let mut low_rank = grad_hidden.matmul(a.transpose());
            if let Some(dropout) = &dropout {
                low_rank = dropped(low_rank, dropout);
            }
            let weight = cast(tensor::<B, 2>(weight), dtype);
            let dense = grad.clone().matmul(weight.transpose());
            Some(reshape(dense + low_rank, shape))
        }
        _ => None,
    };
    let input = saved.x.map(rows::<B>);
    let low_rank_input = match (saved.dropped, &dropout) {
        (Some(kept), _) => Some(rows::<B>(kept)),
        (None, Some(dropout)) => input.clone().map(|input| dropped(input, dropout)),
        (None, None) => input.clone(),
    };
    let grad_a = match (needs_a, low_rank_input, grad_hidden) {
        (true, Some(input), Some(grad_hidden)) => {
            Some(primitive(cast(input.transpose().matmul(grad_hidden), a_dtype)))
        }
        _ => None,
    };
    let grad_b = needs_b.then(|| {
        let hidden = tensor::<B, 2>(saved.hidden).transpose();
        primitive(cast(hidden.matmul(grad.clone()).mul_scalar(scale), b_dtype))
    });
    let bias = saved.bias_dtype.map(|dtype| column_sum(grad.clone(), dtype));
    let weight = match (needs_weight, input) {
        (true, Some(input)) => {
            Some(primitive(cast(input.transpose().matmul(grad), saved.weight_dtype)))
        }
        _ => None,
    };
    LoraLinearGrads { x, weight, bias, a: grad_a, b: grad_b }
}

/// Sum over the rows in at least f32: the gradient of a bias.
fn column_sum<B: Backend>(grad: Tensor<B, 2>, dtype: DType) -> FloatTensor<B> {
    primitive(cast(widen(grad).sum_dim(0).squeeze_dim::<1>(0), dtype))
}

fn dropped<B: Backend>(x: Tensor<B, 2>, dropout: &Dropout<B>) -> Tensor<B, 2> {
    tensor(dropout::dropout::<B>(primitive(x), dropout, None))
}
