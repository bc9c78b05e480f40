//! Tensors as kernels and products see them: element types, rows, strides.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::{cast as cast_kernel, into_contiguous};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use cubecl::cuda::CudaRuntime;

use super::elementwise;
use super::gpu::flush;
use super::product::Layout;
use super::ready::is_fast;

/// Burn's tensor on the device.
pub(super) type Tensor = CubeTensor<CudaRuntime>;

/// Element types that the fast bodies compute with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Element {
    F32,
    F16,
    BF16,
}

impl Element {
    pub(super) fn of(tensor: &Tensor) -> Option<Self> {
        Self::of_dtype(tensor.dtype)
    }

    pub(super) fn of_dtype(dtype: DType) -> Option<Self> {
        match dtype {
            DType::F32 => Some(Self::F32),
            DType::F16 => Some(Self::F16),
            DType::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    pub(super) fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::BF16 => DType::BF16,
        }
    }

    /// How names of kernels end.
    pub(super) fn suffix(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
        }
    }

    pub(super) fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }
}

/// The element type of the first, where the fast bodies serve all of `tensors`: floats of at most 32 bits, not empty, on a
/// device that has what it takes.
pub(super) fn served(tensors: &[&Tensor]) -> Option<Element> {
    let first = *tensors.first()?;
    if !is_fast(&first.device) {
        return None;
    }
    let element = Element::of(first)?;
    let all = tensors
        .iter()
        .all(|tensor| Element::of(tensor).is_some() && tensor.meta.shape().num_elements() > 0);
    all.then_some(element)
}

/// Memory for a tensor without gaps, beside `like`.
pub(super) fn empty(like: &Tensor, shape: &[usize], dtype: DType) -> Tensor {
    let (client, device) = (like.client.clone(), like.device.clone());
    empty_device_contiguous_dtype(client, device, Shape::from(shape.to_vec()), dtype)
}

/// Memory for a tensor of the same shape and type, without gaps.
pub(super) fn empty_like(like: &Tensor) -> Tensor {
    empty(like, &dims(like), like.dtype)
}

pub(super) fn dims(tensor: &Tensor) -> Vec<usize> {
    tensor.meta.shape().to_vec()
}

pub(super) fn strides(tensor: &Tensor) -> Vec<usize> {
    tensor.meta.strides().to_vec()
}

/// Without gaps and in row-major order; copies only where it is not.
pub(super) fn contiguous(tensor: Tensor) -> Tensor {
    if tensor.is_contiguous() {
        return tensor;
    }
    flush();
    into_contiguous(tensor)
}

/// New memory with the same values.
pub(super) fn copied(tensor: &Tensor) -> Tensor {
    flush();
    into_contiguous(tensor.copy())
}

/// In another element type; copies only where it differs.
pub(super) fn cast(tensor: Tensor, dtype: DType) -> Tensor {
    if tensor.dtype == dtype {
        return tensor;
    }
    if tensor.is_contiguous()
        && let Some(from) = served(&[&tensor])
        && let Some(to) = Element::of_dtype(dtype)
    {
        return elementwise::convert(&tensor, from, to);
    }
    flush();
    cast_kernel(tensor, dtype)
}

/// Another shape for the memory of a tensor without gaps.
pub(super) fn reshaped(tensor: Tensor, shape: &[usize]) -> Tensor {
    let Tensor { client, handle, device, dtype, .. } = tensor;
    CubeTensor::new_contiguous(client, device, Shape::from(shape.to_vec()), handle, dtype)
}

/// `shape` with its last dimension replaced.
pub(super) fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(dim) = shape.last_mut() {
        *dim = last;
    }
    shape
}

/// `[.., d]` as `rows` rows of `width` neighbouring elements, `stride` elements apart.
#[derive(Clone, Debug)]
pub(super) struct Rows {
    pub(super) tensor: Tensor,
    pub(super) rows: usize,
    pub(super) width: usize,
    pub(super) stride: usize,
}

impl Rows {
    /// Copies only what is no evenly spaced set of rows.
    pub(super) fn new(tensor: Tensor) -> Self {
        let (shape, steps) = (dims(&tensor), strides(&tensor));
        let width = shape.last().copied().unwrap_or(1);
        let rows = shape.iter().rev().skip(1).product();
        if let Some(stride) = row_stride(&shape, &steps) {
            return Self { tensor, rows, width, stride };
        }
        Self { tensor: contiguous(tensor), rows, width, stride: width }
    }

    pub(super) fn layout(&self) -> Layout {
        Layout::rows(self.stride)
    }
}

/// The distance of rows, where it is the same between all of them and rows have neither gaps nor overlap.
fn row_stride(shape: &[usize], strides: &[usize]) -> Option<usize> {
    let (width, leading) = shape.split_last()?;
    let (step, leading_strides) = strides.split_last()?;
    if *width > 1 && *step != 1 {
        return None;
    }
    let mut found: Option<(usize, usize)> = None; // stride of the rows, and how far the dimensions so far reach
    for (size, stride) in leading.iter().zip(leading_strides).rev() {
        if *size == 1 {
            continue;
        }
        found = match found {
            None => Some((*stride, stride * size)),
            Some((rows, reach)) if reach == *stride => Some((rows, reach * size)),
            Some(_) => return None,
        };
    }
    let stride = found.map_or(*width, |(stride, _)| stride);
    (stride >= *width).then_some(stride)
}

/// A matrix `[rows, columns]` as an operand; copies only what is neither rows nor columns.
pub(super) fn matrix(tensor: Tensor) -> (Tensor, Layout) {
    let (shape, steps) = (dims(&tensor), strides(&tensor));
    if let Some(stride) = row_stride(&shape, &steps) {
        return (tensor, Layout::rows(stride));
    }
    if let ([rows, columns], [down, across]) = (&shape[..], &steps[..])
        && let Some(stride) = row_stride(&[*columns, *rows], &[*across, *down])
    {
        return (tensor, Layout::rows(stride).t());
    }
    let columns = shape.last().copied().unwrap_or(1);
    (contiguous(tensor), Layout::rows(columns))
}

#[cfg(test)]
mod tests {
    use super::row_stride;

    #[test]
    fn evenly_spaced_rows() {
        assert_eq!(row_stride(&[2, 3, 4], &[12, 4, 1]), Some(4));
        // Pitched memory, and a slice of the columns.
        assert_eq!(row_stride(&[2, 3, 4], &[48, 16, 1]), Some(16));
        // A slice of the middle dimension: a gap between the outer steps.
        assert_eq!(row_stride(&[2, 2, 4], &[12, 4, 1]), None);
        // Swapped, transposed, broadcast.
        assert_eq!(row_stride(&[3, 2, 4], &[4, 12, 1]), None);
        assert_eq!(row_stride(&[4, 3], &[1, 4]), None);
        assert_eq!(row_stride(&[5, 3], &[0, 1]), None);
        // Dimensions of one element have any stride.
        assert_eq!(row_stride(&[1, 3, 1], &[7, 2, 9]), Some(2));
        assert_eq!(row_stride(&[1, 6], &[1, 1]), Some(6));
        assert_eq!(row_stride(&[6], &[1]), Some(6));
    }
}
