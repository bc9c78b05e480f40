//! Host views of tensors: the bridge between a backend's primitives and the kernels.

use std::borrow::Cow;

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::FloatTensor;

use super::gemm::Mat;

/// A CPU backend whose `f32` tensors can be read in place.
pub(super) trait Host: BurnBackend {
    /// The elements without a copy where the layout allows; `None` unless the dtype is f32.
    fn view(tensor: &FloatTensor<Self>) -> Option<View<'_>>;

    /// A row-major tensor.
    fn make(data: Vec<f32>, shape: &[usize]) -> FloatTensor<Self>;
}

/// Elements with shape and strides; the first element of the tensor is the first of `data`.
#[derive(Clone)]
pub(super) struct View<'a> {
    data: Cow<'a, [f32]>,
    pub shape: Vec<usize>,
    strides: Vec<usize>,
}

/// Views of several tensors; `None` unless all are f32.
pub(super) fn views<'a, B: Host, const N: usize>(
    tensors: [&'a FloatTensor<B>; N],
) -> Option<[View<'a>; N]> {
    let views: Option<Vec<View<'a>>> = tensors.into_iter().map(|tensor| B::view(tensor)).collect();
    views?.try_into().ok()
}

impl<'a> View<'a> {
    pub fn row_major(data: Cow<'a, [f32]>, shape: Vec<usize>) -> Self {
        let mut strides = vec![1; shape.len()];
        for i in (1..shape.len()).rev() {
            strides[i - 1] = strides[i] * shape[i];
        }
        Self { data, shape, strides }
    }

    /// Strides in elements, all `>= 0`.
    pub fn strided(data: &'a [f32], shape: Vec<usize>, strides: Vec<usize>) -> Self {
        Self { data: Cow::Borrowed(data), shape, strides }
    }

    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Size of the last dimension.
    pub fn last(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.shape.split_last().map_or(1, |(_, leading)| leading.iter().product())
    }

    fn is_row_major(&self) -> bool {
        let mut expected = 1;
        for (size, stride) in self.shape.iter().zip(&self.strides).rev() {
            if *size != 1 && *stride != expected {
                return false;
            }
            expected *= size;
        }
        true
    }

    /// The elements in row-major order; copied when they are not so in memory.
    pub fn contiguous(&self) -> Cow<'_, [f32]> {
        if self.is_row_major() {
            return Cow::Borrowed(&self.data[..self.len()]);
        }
        let mut out = Vec::with_capacity(self.len());
        self.copy_into(0, 0, &mut out);
        Cow::Owned(out)
    }

    fn copy_into(&self, dim: usize, offset: usize, out: &mut Vec<f32>) {
        let (size, stride) = (self.shape[dim], self.strides[dim]);
        if dim + 1 < self.shape.len() {
            for i in 0..size {
                self.copy_into(dim + 1, offset + i * stride, out);
            }
        } else if stride == 1 {
            out.extend_from_slice(&self.data[offset..offset + size]);
        } else {
            out.extend((0..size).map(|i| self.data[offset + i * stride]));
        }
    }

    /// A two-dimensional tensor as a matrix, without a copy.
    pub fn mat(&self) -> Mat<'_> {
        let strides = [self.strides[0], self.strides[1]];
        Mat::with_strides(&self.data, self.shape[0], self.shape[1], strides)
    }

    /// A four-dimensional tensor `[b, h, s, d]` with adjacent elements in the last dimension.
    pub fn into_heads(self) -> Heads<'a> {
        let view = if self.strides[3] == 1 || self.shape[3] == 1 {
            self
        } else {
            Self::row_major(Cow::Owned(self.contiguous().into_owned()), self.shape.clone())
        };
        let [batch, heads, len, dim] = [0, 1, 2, 3].map(|i| view.shape[i]);
        let strides = [0, 1, 2].map(|i| view.strides[i]);
        Heads { data: view.data, batch, heads, len, dim, strides }
    }
}

/// `[b, h, s, d]` with rows of `d` adjacent elements, usually a permuted `[b, s, h, d]`.
pub(super) struct Heads<'a> {
    data: Cow<'a, [f32]>,
    pub batch: usize,
    pub heads: usize,
    pub len: usize,
    pub dim: usize,
    strides: [usize; 3],
}

impl Heads<'_> {
    fn offset(&self, b: usize, h: usize, s: usize) -> usize {
        b * self.strides[0] + h * self.strides[1] + s * self.strides[2]
    }

    pub fn row(&self, b: usize, h: usize, s: usize) -> &[f32] {
        let offset = self.offset(b, h, s);
        &self.data[offset..offset + self.dim]
    }

    /// Rows `start..start + rows` of one head.
    pub fn mat(&self, b: usize, h: usize, start: usize, rows: usize) -> Mat<'_> {
        let offset = self.offset(b, h, start).min(self.data.len());
        Mat::strided(&self.data[offset..], rows, self.dim, self.strides[2])
    }
}
