//! Dropout by the rows' keys: the mask exists in registers only.

use burn::tensor::DType;

use super::cast::cast;
use super::element::Tensor;
use super::kernel::{Arg, Grid};
use super::queue::submit;
use super::sources::DROPOUT;
use super::tensor::{contiguous, dims, empty_like, served};
use crate::dropout::threshold;

/// `x` with dropout, plus `sum`; what nobody else has is written over, `sum` or, without one, `x`. `keys` is `[2 * rows]`, low and high halves
/// of the rows' states.
pub(super) fn dropout(
    x: &Tensor,
    keys: &Tensor,
    place: u64,
    p: f64,
    sum: &mut Option<Tensor>,
) -> Option<Tensor> {
    let element = served(&[x])?;
    let (shape, rows) = (dims(x), *dims(keys).first()? / 2);
    let d = *shape.last()?;
    if keys.dtype != DType::I32 || rows * d != shape.iter().product::<usize>() {
        return None;
    }
    let own = x.can_mut();
    let (x, keys) = (contiguous(x.clone()), contiguous(keys.clone()));
    let sum = sum.take().map(|sum| contiguous(cast(sum, element.dtype())));
    let y = match &sum {
        Some(sum) if sum.can_mut() => sum.clone(),
        None if own => x.clone(),
        _ => empty_like(&x),
    };
    let keep = 1.0 / (1.0 - p);
    let threshold = threshold(p) as usize;
    submit([Some(&x), Some(&keys), sum.as_ref(), Some(&y)], move |gpu, [x, keys, sum, y]| {
        let args = [
            Arg::Address(x),
            Arg::Address(keys),
            Arg::Address(sum),
            Arg::Address(y),
            Arg::Long(rows),
            Arg::Long(d),
            Arg::Address(place),
            Arg::Int(threshold),
            Arg::Float(keep),
        ];
        let name = format!("dropout_{}", element.suffix());
        gpu.launch(&DROPOUT, "", &name, Grid::new(rows, 256), &args)
    });
    Some(y)
}
