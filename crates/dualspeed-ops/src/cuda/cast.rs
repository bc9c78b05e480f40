//! Tensors in other element types: kernels of `kernels/elementwise.cu`.

use burn::tensor::DType;
use burn_cubecl::kernel::cast as cast_kernel;

use super::element::{Element, Tensor};
use super::kernel::{Arg, Grid};
use super::queue::{flush, submit, submit_all};
use super::sources::ELEMENTWISE;
use super::tensor::{contiguous, dims, empty, served};

/// In another element type; copies only where it differs.
pub(super) fn cast(tensor: Tensor, dtype: DType) -> Tensor {
    if tensor.dtype == dtype {
        return tensor;
    }
    if tensor.is_contiguous()
        && let Some(from) = served(&[&tensor])
        && let Some(to) = Element::of_dtype(dtype)
    {
        return convert(&tensor, from, to);
    }
    flush();
    cast_kernel(tensor, dtype)
}

/// The same values in another element type.
fn convert(x: &Tensor, from: Element, to: Element) -> Tensor {
    let y = empty(x, &dims(x), to.dtype());
    let n = dims(x).iter().product::<usize>();
    submit([Some(x), Some(&y)], move |gpu, [x, y]| {
        let name = format!("cast_{}_{}", from.suffix(), to.suffix());
        let grid = Grid::new(n.div_ceil(2048).min(8 * gpu.multiprocessors), 256);
        let args = [Arg::Address(x), Arg::Address(y), Arg::Long(n), Arg::Float(1.0)];
        gpu.launch(&ELEMENTWISE, "", &name, grid, &args)
    });
    y
}

/// Tensors that one launch of `cast_many` takes.
const CASTS: usize = 16;

/// The tensors in `dtype`; those of f32 in one launch for every sixteen.
pub(super) fn cast_many(tensors: Vec<Tensor>, dtype: DType) -> Vec<Tensor> {
    let fits = |tensor: &Tensor| tensor.dtype == DType::F32 && served(&[tensor]).is_some();
    let element = match Element::of_dtype(dtype) {
        Some(element) if element != Element::F32 && tensors.iter().all(fits) => element,
        _ => return tensors.into_iter().map(|tensor| cast(tensor, dtype)).collect(),
    };
    let from: Vec<Tensor> = tensors.into_iter().map(contiguous).collect();
    let to: Vec<Tensor> = from.iter().map(|x| empty(x, &dims(x), dtype)).collect();
    for (from, to) in from.chunks(CASTS).zip(to.chunks(CASTS)) {
        let lengths: Vec<u64> =
            from.iter().map(|x| dims(x).iter().product::<usize>() as u64).collect();
        let operands: Vec<&Tensor> = from.iter().chain(to).collect();
        submit_all(&operands, move |gpu, addresses| {
            let (from, to) = addresses.split_at(lengths.len());
            let pad = |values: &[u64]| {
                let mut values = values.to_vec();
                values.resize(CASTS, 0);
                values
            };
            let table = [pad(from), pad(to), pad(&lengths)].concat();
            let most = lengths.iter().copied().max().unwrap_or(0) as usize;
            let blocks = [most.div_ceil(8192).clamp(1, 1024), lengths.len(), 1];
            let grid = Grid { blocks, threads: 256, shared: 0 };
            let name = format!("cast_many_{}", element.suffix());
            gpu.launch(&ELEMENTWISE, "", &name, grid, &[Arg::Struct(table)])
        });
    }
    to
}
