//! Dropout masks made on the device from the rows' keys.

use burn::tensor::DType;

use super::gpu::submit;
use super::kernel::{Arg, Grid, Source};
use super::ready::is_fast;
use super::tensor::{Element, Tensor, contiguous, dims, empty};
use crate::dropout::threshold;

static DROPOUT: Source = Source {
    name: "dropout",
    text: concat!(include_str!("kernels/prelude.cu"), include_str!("kernels/dropout.cu")),
};

/// `keys` is `[rows, 2]`, low and high halves of the rows' states.
pub(super) fn dropout_mask(
    keys: &Tensor,
    place: u64,
    p: f64,
    d: usize,
    dtype: DType,
) -> Option<Tensor> {
    let element = Element::of_dtype(dtype)?;
    let rows = *dims(keys).first()?;
    if !is_fast(&keys.device) || keys.dtype != DType::I32 || rows * d == 0 {
        return None;
    }
    let keys = contiguous(keys.clone());
    let mask = empty(&keys, &[rows, d], dtype);
    let keep = 1.0 / (1.0 - p);
    let threshold = threshold(p) as usize;
    submit([Some(&keys), Some(&mask)], move |gpu, [keys, mask]| {
        let args = [
            Arg::Address(0),
            Arg::Address(keys),
            Arg::Address(mask),
            Arg::Long(rows),
            Arg::Long(d),
            Arg::Address(place),
            Arg::Int(threshold),
            Arg::Float(keep),
        ];
        let name = format!("dropout_{}", element.suffix());
        gpu.launch(&DROPOUT, "", &name, Grid::new(rows, 256), &args)
    });
    Some(mask)
}
