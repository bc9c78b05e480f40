//! Picking rows, backwards.

use burn::tensor::DType;

use super::element::Tensor;
use super::kernel::{Arg, Grid};
use super::queue::submit;
use super::sources::SELECT;
use super::tensor::{contiguous, dims, empty, served};

/// `[m, d]`, `[m]` -> `[n, d]`: what went to a row adds up there.
pub(super) fn select_rows_backward(grad: &Tensor, ids: &Tensor, n: usize) -> Option<Tensor> {
    let element = served(&[grad])?;
    let [m, d]: [usize; 2] = dims(grad).try_into().ok()?;
    let index = match ids.dtype {
        DType::I32 => "i32",
        DType::I64 => "i64",
        _ => return None,
    };
    if n == 0 || dims(ids) != [m] {
        return None;
    }
    let (grad, ids) = (contiguous(grad.clone()), contiguous(ids.clone()));
    let out = empty(&grad, &[n, d], element.dtype());
    submit([Some(&grad), Some(&ids), Some(&out)], move |gpu, addresses| {
        let mut args = addresses.map(Arg::Address).to_vec();
        args.extend([n, m, d].map(Arg::Long));
        let name = format!("select_rows_backward_{}_{index}", element.suffix());
        gpu.launch(&SELECT, "", &name, Grid::new(n.min(1 << 20), 256), &args)
    });
    Some(out)
}
