//! Tensors as kernels and products see them: rows, heads, strides.

use burn::tensor::{DType, Shape};
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;

use super::element::{Element, Tensor};
use super::product::Layout;
use super::queue::flush;
use super::ready::is_fast;

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

/// Another shape for the memory of a tensor without gaps.
pub(super) fn reshaped(tensor: Tensor, shape: &[usize]) -> Tensor {
    let Tensor { client, handle, device, dtype, .. } = tensor;
    Tensor::new_contiguous(client, device, Shape::from(shape.to_vec()), handle, dtype)
}

/// `shape` with its last dimension replaced.
pub(super) fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if let Some(dim) = shape.last_mut() {
        *dim = last;
    }
    shape
}

/// Memory for `[b, h, s, d]` in the order of `like`: a view of `[b, s, h, d]` where `like` is one.
pub(super) fn empty_heads(like: &Tensor, shape: [usize; 4], dtype: DType) -> Tensor {
    let steps = strides(like);
    let [b, h, s, d] = shape;
    if steps.len() == 4 && steps[1] <= steps[2] {
        let mut tensor = empty(like, &[b, s, h, d], dtype);
        tensor.meta.swap(1, 2);
        return tensor;
    }
    empty(like, &[b, h, s, d], dtype)
}

/// The tensor with its last dimension contiguous, and the other strides.
pub(super) fn heads(tensor: Tensor) -> (Tensor, [usize; 4], [usize; 3]) {
    let fits = strides(&tensor).last() == Some(&1) || dims(&tensor).last() == Some(&1);
    let tensor = if fits { tensor } else { contiguous(tensor) };
    let at = |values: &[usize], i: usize| values.get(i).copied().unwrap_or(1);
    let (shape, steps) = (dims(&tensor), strides(&tensor));
    (tensor, [0, 1, 2, 3].map(|i| at(&shape, i)), [0, 1, 2].map(|i| at(&steps, i)))
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
