//! Linear layers, with and without LoRA, on cuBLASLt.
//!
//! Operands that are rows of a larger tensor or transposed views are used where they lie. Weights of another type are
//! rounded to the activations' type first; gradients of weights leave the product in the weights' own type, so those of
//! f32 weights are sums in f32.

use burn::tensor::DType;

use super::cast::cast;
use super::element::{Element, Tensor};
use super::elementwise::bias_gradient;
use super::product::{Layout, Operands, Product};
use super::queue::submit;
use super::tensor::{Rows, contiguous, dims, empty, matrix, reshaped, served, with_last};
use crate::Backend;
use crate::dropout::Dropout;
use crate::types::*;

/// An operand as cuBLASLt sees it.
type Operand = (Tensor, Layout);

/// A weight in the type of the activations.
fn weight_operand(weight: Tensor, element: Element) -> Operand {
    matrix(cast(weight, element.dtype()))
}

fn columns(tensor: &Tensor) -> usize {
    dims(tensor).last().copied().unwrap_or(1)
}

/// Operands of the gradient of a matrix: its element, where cuBLASLt can produce it.
fn output_element(dtype: DType, element: Element) -> Element {
    if dtype == DType::F32 { Element::F32 } else { element }
}

/// `C = alpha A B` into new memory of shape `shape`.
fn product(
    [m, n, k]: [usize; 3],
    a: &Operand,
    b: &Operand,
    element: Element,
    dtype: DType,
    shape: &[usize],
    alpha: f64,
) -> Tensor {
    let output = output_element(dtype, element);
    let c = empty(&a.0, shape, output.dtype());
    let plan = Product::new([m, n, k], a.1, b.1, element).into(output);
    submit([Some(&a.0), Some(&b.0), Some(&c)], move |gpu, [a, b, c]| {
        gpu.product(plan, Operands::new(a, b, c), alpha as f32, 0.0)
    });
    cast(c, dtype)
}

/// What is added to a product, in its shape and type and without gaps.
fn addend(tensor: Option<Tensor>, element: Element, shape: &[usize]) -> Option<Tensor> {
    let tensor = contiguous(cast(tensor?, element.dtype()));
    Some(reshaped(tensor, shape))
}

/// `x W`, plus a bias and a residual where they are there.
pub(super) fn linear(
    x: Tensor,
    weight: Tensor,
    bias: Option<Tensor>,
    residual: Option<Tensor>,
) -> Option<Tensor> {
    let element = served(&[&x, &weight])?;
    let shape = with_last(&dims(&x), columns(&weight));
    let (x, weight) = (Rows::new(x), weight_operand(weight, element));
    let bias = bias.map(|bias| contiguous(cast(bias, element.dtype())));
    let (m, n, k) = (x.rows, columns(&weight.0), x.width);
    let y = empty(&x.tensor, &shape, element.dtype());
    let plan =
        Product { bias: bias.is_some(), ..Product::new([m, n, k], x.layout(), weight.1, element) };
    let residual = addend(residual, element, &shape);
    let beta = if residual.is_some() { 1.0 } else { 0.0 };
    submit(
        [Some(&x.tensor), Some(&weight.0), bias.as_ref(), residual.as_ref(), Some(&y)],
        move |gpu, [a, b, bias, add, c]| {
            gpu.product(plan, Operands { a, b, c, bias, add }, 1.0, beta)
        },
    );
    Some(y)
}

/// Gradients of a linear layer; `sum` is added to that of the input.
pub(super) fn linear_backward<B: Backend<FloatTensorPrimitive = Tensor>>(
    saved: &LinearSaved<B>,
    grad: &Tensor,
    sum: &mut Option<Tensor>,
) -> Option<LinearGrads<B>> {
    let element = served(&[grad])?;
    for operand in [&saved.x, &saved.weight].into_iter().flatten() {
        served(&[operand])?;
    }
    let shape = dims(grad);
    let g = Rows::new(grad.clone());
    let (m, n) = (g.rows, g.width);
    let g = (g.tensor.clone(), g.layout());
    let x = saved.weight.clone().map(|weight| {
        let k = dims(&weight)[0];
        let (weight, layout) = weight_operand(weight, element);
        let shape = with_last(&shape, k);
        let sum = addend(sum.take(), element, &shape);
        let dx = sum_target(&g.0, &sum, &shape, element);
        let plan = Product::new([m, k, n], g.1, layout.t(), element);
        let beta = if sum.is_some() { 1.0 } else { 0.0 };
        submit([Some(&g.0), Some(&weight), sum.as_ref(), Some(&dx)], move |gpu, [a, b, add, c]| {
            gpu.product(plan, Operands { a, b, c, bias: 0, add }, 1.0, beta)
        });
        dx
    });
    let weight = saved.x.clone().map(|x| {
        let x = Rows::new(cast(x, element.dtype()));
        let (k, x) = (x.width, (x.tensor.clone(), x.layout().t()));
        product([k, n, m], &x, &g, element, saved.weight_dtype, &[k, n], 1.0)
    });
    let bias = saved.bias_dtype.and_then(|dtype| {
        let rows = reshaped(contiguous(grad.clone()), &[m, n]);
        bias_gradient(&rows, dtype)
    });
    Some(LinearGrads { x, weight, bias })
}

/// Where a product with an addend goes: onto the addend, if nobody else reads it.
fn sum_target(like: &Tensor, sum: &Option<Tensor>, shape: &[usize], element: Element) -> Tensor {
    match sum {
        Some(sum) if sum.can_mut() => sum.clone(),
        _ => empty(like, shape, element.dtype()),
    }
}

/// The input of an adapter: after dropout, where there is some.
fn dropped<B: Backend<FloatTensorPrimitive = Tensor>>(
    x: &Tensor,
    dropout: &Option<Dropout<B>>,
) -> Tensor {
    match dropout {
        Some(dropout) => B::fused_dropout(x.clone(), dropout, None),
        None => x.clone(),
    }
}

/// `x W + scale (dropout(x) A) B`, plus a bias and a residual where they are there.
pub(super) fn lora_linear<B: Backend<FloatTensorPrimitive = Tensor>>(
    x: &Tensor,
    weight: &Tensor,
    bias: Option<&Tensor>,
    adapter: &LoraAdapter<B>,
    residual: Option<Tensor>,
) -> Option<LoraLinearOutput<B>> {
    let LoraAdapter { a, b, scale, dropout } = adapter;
    let element = served(&[x, weight, a, b])?;
    let scale = *scale as f32;
    let shape = with_last(&dims(x), columns(weight));
    let rank = columns(a);
    let dropped = Rows::new(dropped::<B>(x, dropout));
    let kept = dropout.as_ref().map(|_| dropped.tensor.clone());
    let x = Rows::new(x.clone());
    let (weight, a, b) = (
        weight_operand(weight.clone(), element),
        weight_operand(a.clone(), element),
        weight_operand(b.clone(), element),
    );
    let (m, n, k) = (x.rows, columns(&weight.0), x.width);
    let y = empty(&x.tensor, &shape, element.dtype());
    let hidden = empty(&x.tensor, &[m, rank], element.dtype());
    let bias = bias.map(|bias| contiguous(cast(bias.clone(), element.dtype())));
    let dense =
        Product { bias: bias.is_some(), ..Product::new([m, n, k], x.layout(), weight.1, element) };
    let down = Product::new([m, rank, k], dropped.layout(), a.1, element);
    let up = Product::new([m, n, rank], Layout::rows(rank), b.1, element);
    let residual = addend(residual, element, &shape);
    let beta = if residual.is_some() { 1.0 } else { 0.0 };
    submit(
        [
            Some(&x.tensor),
            Some(&dropped.tensor),
            Some(&weight.0),
            Some(&a.0),
            Some(&b.0),
            bias.as_ref(),
            residual.as_ref(),
            Some(&hidden),
            Some(&y),
        ],
        move |gpu, [x, dropped, weight, a, b, bias, add, hidden, y]| {
            gpu.product(down, Operands::new(dropped, a, hidden), 1.0, 0.0)?;
            // The large product comes last: it reads what is there while it computes, which costs no pass over memory.
            let operands = Operands { add, ..Operands::new(hidden, b, y) };
            gpu.product(up, operands, scale, beta)?;
            gpu.product(dense, Operands { bias, ..Operands::new(x, weight, y) }, 1.0, 1.0)
        },
    );
    Some(LoraLinearOutput { output: y, hidden, dropped: kept })
}

/// The element type, where [`lora_linear_backward`] serves the operands.
pub(super) fn lora_serves<B: Backend<FloatTensorPrimitive = Tensor>>(
    saved: &LoraLinearSaved<B>,
    grad: &Tensor,
) -> Option<Element> {
    served(&[grad, &saved.adapter.a, &saved.adapter.b, &saved.hidden])
}

/// Gradients of a linear layer with an adapter; `sum` is added to that of the input. What is used up is let go, so that the
/// next results can have its memory.
pub(super) fn lora_linear_backward<B: Backend<FloatTensorPrimitive = Tensor>>(
    saved: LoraLinearSaved<B>,
    element: Element,
    grad: Tensor,
    needs: [bool; 4],
    sum: Option<Tensor>,
) -> LoraLinearGrads<B> {
    let [needs_x, needs_weight, needs_a, needs_b] = needs;
    let LoraLinearSaved { x, weight, weight_dtype, bias_dtype, adapter, .. } = saved;
    let LoraLinearSaved { adapter_dtypes, hidden, dropped: kept, .. } = saved;
    let LoraAdapter { a, b, scale, dropout } = adapter;
    let dtype = element.dtype();
    let shape = dims(&grad);
    let g = Rows::new(grad);
    let (m, n) = (g.rows, g.width);
    let g: Operand = (g.tensor.clone(), g.layout());
    let grad_bias = bias_dtype.and_then(|dtype| {
        let rows = reshaped(contiguous(g.0.clone()), &[m, n]);
        bias_gradient(&rows, dtype)
    });
    let [k, rank] = [dims(&a)[0], columns(&a)];
    let (a, b) = (weight_operand(a, element), weight_operand(b, element));
    let grad_hidden = (needs_x || needs_a).then(|| {
        let transposed = (b.0.clone(), b.1.t());
        let hidden = product([m, rank, n], &g, &transposed, element, dtype, &[m, rank], scale);
        (hidden, Layout::rows(rank))
    });
    let against = |x: Tensor, of: &Operand, [rows, columns]: [usize; 2], dtype, scale| {
        let x = Rows::new(x);
        let x = (x.tensor.clone(), x.layout().t());
        product([rows, columns, m], &x, of, element, dtype, &[rows, columns], scale)
    };
    let x = x.map(|x| cast(x, dtype));
    let grad_a = grad_hidden.as_ref().filter(|_| needs_a).and_then(|hidden| {
        let x = kept.or_else(|| x.as_ref().map(|x| dropped::<B>(x, &dropout)))?;
        Some(against(x, hidden, [k, rank], adapter_dtypes[0], 1.0))
    });
    let grad_b = needs_b.then(|| against(hidden, &g, [rank, n], adapter_dtypes[1], scale));
    let grad_weight = x.filter(|_| needs_weight).map(|x| against(x, &g, [k, n], weight_dtype, 1.0));
    let grad_x = match (needs_x, weight, &grad_hidden) {
        (true, Some(weight), Some(hidden)) => {
            let weight = weight_operand(weight, element);
            let shape = with_last(&shape, k);
            let sum = addend(sum, element, &shape);
            let low_rank = Product::new([m, k, rank], hidden.1, a.1.t(), element);
            let dense = Product::new([m, k, n], g.1, weight.1.t(), element);
            // The low-rank part first (through dropout, where there was some), the large product on top.
            let (first, around) = match &dropout {
                None => (Some(low_rank), sum),
                Some(dropout) => {
                    let low = empty(&g.0, &shape, dtype);
                    submit([&hidden.0, &a.0, &low].map(Some), move |gpu, [hidden, a, low]| {
                        gpu.product(low_rank, Operands::new(hidden, a, low), 1.0, 0.0)
                    });
                    (None, Some(B::fused_dropout(low, dropout, sum)))
                }
            };
            let beta = if around.is_some() { 1.0 } else { 0.0 };
            let dx = sum_target(&g.0, &around, &shape, element);
            submit(
                [
                    Some(&g.0),
                    Some(&weight.0),
                    Some(&hidden.0),
                    Some(&a.0),
                    around.as_ref(),
                    Some(&dx),
                ],
                move |gpu, [g, weight, hidden, a, add, dx]| match first {
                    Some(low_rank) => {
                        let operands = Operands { add, ..Operands::new(hidden, a, dx) };
                        gpu.product(low_rank, operands, 1.0, beta)?;
                        gpu.product(dense, Operands::new(g, weight, dx), 1.0, 1.0)
                    }
                    None => {
                        let operands = Operands { add, ..Operands::new(g, weight, dx) };
                        gpu.product(dense, operands, 1.0, beta)
                    }
                },
            );
            Some(dx)
        }
        _ => None,
    };
    LoraLinearGrads { x: grad_x, weight: grad_weight, bias: grad_bias, a: grad_a, b: grad_b }
}
