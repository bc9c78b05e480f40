//! Norms, activations and the rotary embedding: kernels of `kernels/elementwise.cu`.
//!
//! Every body returns `None` where it does not serve the operands; the plain body does then.

use burn::tensor::DType;

use super::cast::cast;
use super::element::{Element, Tensor};
use super::error::CudaError;
use super::gpu::Gpu;
use super::kernel::{Arg, Grid};
use super::queue::submit;
use super::sources::ELEMENTWISE;
use super::tensor::{Rows, contiguous, dims, empty, empty_heads, empty_like, heads, served};

use Arg::{Address, Float, Int, Long};

fn launch(
    gpu: &mut Gpu,
    name: &str,
    element: Element,
    grid: Grid,
    args: &[Arg],
) -> Result<(), CudaError> {
    let name = format!("{name}_{}", element.suffix());
    gpu.launch(&ELEMENTWISE, "", &name, grid, args)
}

/// Rows and width of a tensor without gaps.
fn sizes(tensor: &Tensor) -> (usize, usize) {
    let shape = dims(tensor);
    let width = shape.last().copied().unwrap_or(1);
    (shape.iter().product::<usize>() / width.max(1), width)
}

/// Threads of a block that walks over a row.
fn row_threads(width: usize, element: Element) -> usize {
    (width * element.bytes()).div_ceil(64).next_multiple_of(32).clamp(32, 512)
}

/// The weights of a norm in f32 or in the type of the input; the flag says which.
fn weights(weight: Tensor, element: Element) -> (Tensor, usize) {
    let weight = match weight.dtype {
        DType::F32 => weight,
        _ => cast(weight, element.dtype()),
    };
    let wide = usize::from(weight.dtype == DType::F32);
    (contiguous(weight), wide)
}

/// RMSNorm, or LayerNorm where there is a bias.
pub(super) fn norm(x: Tensor, weight: Tensor, bias: Option<Tensor>, eps: f64) -> Option<Tensor> {
    let element = served(&[&x, &weight])?;
    let x = contiguous(x);
    let (rows, width) = sizes(&x);
    let (weight, wide) = weights(weight, element);
    let bias = bias.map(|bias| contiguous(cast(bias, weight.dtype)));
    let y = empty_like(&x);
    submit([Some(&x), Some(&weight), bias.as_ref(), Some(&y)], move |gpu, [x, w, b, y]| {
        let grid = Grid::new(rows, row_threads(width, element));
        let (null, sizes) = (Address(0), [Long(rows), Long(width), Float(eps), Int(wide)]);
        let mut args = vec![Address(x), null.clone(), Address(w)];
        let name = match b {
            0 => "rms_norm_forward",
            b => {
                args.push(Address(b));
                "layer_norm_forward"
            }
        };
        args.extend([null, Address(y)]);
        args.extend(sizes);
        launch(gpu, name, element, grid, &args)
    });
    Some(y)
}

/// Gradients of [`norm`]; `centred` for LayerNorm. `around` is the gradient that bypasses the norm, and whether it may be
/// written over: it is added to that of the input.
pub(super) fn norm_backward(
    x: Tensor,
    weight: Tensor,
    eps: f64,
    grad: Tensor,
    around: Option<(Tensor, bool)>,
    centred: bool,
    [needs_x, needs_weight, needs_bias]: [bool; 3],
) -> Option<[Option<Tensor>; 3]> {
    let element = served(&[&x, &weight, &grad])?;
    let weight_dtype = weight.dtype;
    let (x, grad) = (contiguous(x), contiguous(cast(grad, element.dtype())));
    let (rows, width) = sizes(&x);
    let (weight, wide) = weights(weight, element);
    let around = around.map(|(around, own)| (contiguous(cast(around, element.dtype())), own));
    let dx = needs_x.then(|| match &around {
        Some((around, true)) => around.clone(),
        _ => empty_like(&x),
    });
    let around = around.map(|(around, _)| around);
    let scale = needs_weight.then(|| empty(&x, &[rows], DType::F32));
    let mean = (needs_weight && centred).then(|| empty(&x, &[rows], DType::F32));
    if needs_x || needs_weight {
        submit(
            [
                Some(&x),
                Some(&weight),
                Some(&grad),
                around.as_ref(),
                dx.as_ref(),
                mean.as_ref(),
                scale.as_ref(),
            ],
            move |gpu, [x, w, g, around, dx, mean, scale]| {
                let grid = Grid::new(rows, (2 * row_threads(width, element)).min(512));
                let mut args = [x, w, g, around, dx].map(Address).to_vec();
                let name = if centred { "layer_norm_backward" } else { "rms_norm_backward" };
                if centred {
                    args.push(Address(mean));
                }
                args.extend([Address(scale), Long(rows), Long(width), Float(eps), Int(wide)]);
                launch(gpu, name, element, grid, &args)
            },
        );
    }
    let sums = column_sums(&grad, Some(&x), mean.as_ref(), scale.as_ref(), needs_bias);
    let finish = |partial: Option<Tensor>| partial.map(|sum| finish_sums(sum, weight_dtype));
    Some([dx, finish(sums.0), finish(sums.1)])
}

/// Sum over the rows of a matrix without gaps: the gradient of a bias.
pub(super) fn bias_gradient(grad: &Tensor, dtype: DType) -> Option<Tensor> {
    column_sums(grad, None, None, None, true).1.map(|partial| finish_sums(partial, dtype))
}

/// Partial sums `[splits, d]` of `grad (x - mean) scale` (where there is a scale) and of `grad` over the rows.
fn column_sums(
    grad: &Tensor,
    x: Option<&Tensor>,
    mean: Option<&Tensor>,
    scale: Option<&Tensor>,
    plain: bool,
) -> (Option<Tensor>, Option<Tensor>) {
    let Some(element) = Element::of(grad) else { return (None, None) };
    if scale.is_none() && !plain {
        return (None, None);
    }
    let (rows, width) = sizes(grad);
    let columns = width.div_ceil(64);
    // About four blocks on each of Hopper's multiprocessors.
    let splits = 528_usize.div_ceil(columns).clamp(1, rows.min(65_535));
    let per_split = rows.div_ceil(splits);
    let splits = rows.div_ceil(per_split);
    let weighted = scale.map(|_| empty(grad, &[splits, width], DType::F32));
    let sum = plain.then(|| empty(grad, &[splits, width], DType::F32));
    submit(
        [Some(grad), scale.and(x), mean, scale, weighted.as_ref(), sum.as_ref()],
        move |gpu, addresses| {
            let grid = Grid { blocks: [columns, splits, 1], threads: 256, shared: 0 };
            let mut args = addresses.map(Address).to_vec();
            args.extend([Long(rows), Long(width), Long(per_split)]);
            launch(gpu, "column_sums", element, grid, &args)
        },
    );
    (weighted, sum)
}

/// `[splits, d]` -> `[d]` in `dtype`.
fn finish_sums(partial: Tensor, dtype: DType) -> Tensor {
    let (splits, width) = sizes(&partial);
    let out = empty(&partial, &[width], dtype);
    let Some(element) = Element::of(&out) else { return out };
    submit([Some(&partial), Some(&out)], move |gpu, [partial, out]| {
        let args = [Address(partial), Address(out), Long(splits), Long(width)];
        launch(gpu, "column_sums_finish", element, Grid::new(width.div_ceil(256), 256), &args)
    });
    out
}

/// An activation of one tensor, or its backward where `grad` is given.
pub(super) fn activation(name: &'static str, x: Tensor, grad: Option<Tensor>) -> Option<Tensor> {
    let element = served(&[&x])?;
    let x = contiguous(x);
    let grad = grad.map(|grad| contiguous(cast(grad, element.dtype())));
    let (y, n) = (empty_like(&x), dims(&x).iter().product::<usize>());
    submit([Some(&x), grad.as_ref(), Some(&y)], move |gpu, [x, g, y]| {
        let per_block = 256 * 16 / element.bytes();
        let grid = Grid::new(n.div_ceil(per_block).min(8 * gpu.multiprocessors), 256);
        match g {
            0 => {
                let args = [Address(x), Address(y), Long(n)];
                launch(gpu, &format!("{name}_forward"), element, grid, &args)
            }
            g => {
                let args = [Address(x), Address(g), Address(y), Long(n)];
                launch(gpu, &format!("{name}_backward"), element, grid, &args)
            }
        }
    });
    Some(y)
}

fn swiglu_grid(rows: usize, width: usize, element: Element) -> Grid {
    let columns = (width * element.bytes()).div_ceil(256 * 16);
    Grid { blocks: [columns, rows.min(65_535), 1], threads: 256, shared: 0 }
}

/// `silu(gate) * up`.
pub(super) fn swiglu(gate: Tensor, up: Tensor) -> Option<Tensor> {
    let element = served(&[&gate, &up])?;
    let y = empty_like(&gate);
    let (gate, up) = (Rows::new(gate), Rows::new(cast(up, element.dtype())));
    let (rows, width, steps) = (gate.rows, gate.width, [gate.stride, up.stride]);
    submit([Some(&gate.tensor), Some(&up.tensor), Some(&y)], move |gpu, [gate, up, y]| {
        let args = [
            Address(gate),
            Long(steps[0]),
            Address(up),
            Long(steps[1]),
            Address(y),
            Long(rows),
            Long(width),
        ];
        launch(gpu, "swiglu_forward", element, swiglu_grid(rows, width, element), &args)
    });
    Some(y)
}

/// Gradients of [`swiglu`], in the memory of `gate` and `up` where that is the caller's `own`.
pub(super) fn swiglu_backward(
    [gate, up]: [Tensor; 2],
    own: [bool; 2],
    grad: Tensor,
    needs: [bool; 2],
) -> Option<[Option<Tensor>; 2]> {
    let element = served(&[&gate, &up, &grad])?;
    let grad = contiguous(cast(grad, element.dtype()));
    let (gate, up) = (Rows::new(gate), Rows::new(cast(up, element.dtype())));
    let (rows, width) = (gate.rows, gate.width);
    let mut steps = [0; 2];
    let mut target = |index: usize, from: &Rows| {
        let apart = rows == 1 || from.stride >= width;
        let (to, step) = match own[index] && apart {
            true => (from.tensor.clone(), from.stride),
            false => (empty_like(&grad), width),
        };
        steps[index] = step;
        needs[index].then_some(to)
    };
    let (gate_grad, up_grad) = (target(0, &gate), target(1, &up));
    submit(
        [Some(&gate.tensor), Some(&up.tensor), Some(&grad), gate_grad.as_ref(), up_grad.as_ref()],
        move |gpu, [gate_, up_, grad, gate_grad, up_grad]| {
            let args = [
                Address(gate_),
                Long(gate.stride),
                Address(up_),
                Long(up.stride),
                Address(grad),
                Address(gate_grad),
                Long(steps[0]),
                Address(up_grad),
                Long(steps[1]),
                Long(rows),
                Long(width),
            ];
            launch(gpu, "swiglu_backward", element, swiglu_grid(rows, width, element), &args)
        },
    );
    Some([gate_grad, up_grad])
}

/// The rotary embedding, backwards where `direction` is -1, in the memory of `x` where that is the caller's `own`.
pub(super) fn rope(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    direction: f64,
    own: bool,
) -> Option<Tensor> {
    let element = served(&[&x, &cos, &sin])?;
    let (x, shape, from) = heads(x);
    let [b, h, s, d] = shape;
    if d % 2 == 1 {
        return None;
    }
    let [cos, sin] = [cos, sin].map(|table| contiguous(cast(table, DType::F32)));
    let table_step = if dims(&cos)[0] == 1 { 0 } else { s * d / 2 };
    // Elements that share memory are not to be written to.
    let apart = shape[..3].iter().zip(from).all(|(size, step)| *size == 1 || step > 0);
    let y = if own && apart { x.clone() } else { empty_heads(&x, shape, x.dtype) };
    let (y, _, to) = heads(y);
    submit([Some(&x), Some(&cos), Some(&sin), Some(&y)], move |gpu, addresses| {
        let threads = (h * d * element.bytes()).div_ceil(128).next_multiple_of(32);
        let threads = threads.clamp(32, 256);
        let mut args = addresses.map(Address).to_vec();
        args.extend([b, h, s, d].map(Long));
        args.extend(from.map(Long));
        args.extend(to.map(Long));
        args.extend([Long(table_step), Float(direction)]);
        launch(gpu, "rope", element, Grid::new(b * s, threads), &args)
    });
    Some(y)
}
