//! Matrix products on strided views: the one place that hands raw pointers to the `gemm` crate.

use std::marker::PhantomData;

/// A strided matrix.
#[derive(Clone, Copy)]
pub(super) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

fn last_index(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Option<usize> {
    (rows > 0 && cols > 0).then(|| (rows - 1) * row_stride + (cols - 1) * col_stride)
}

impl<'a> Mat<'a> {
    /// Row-major, rows side by side.
    pub fn new(data: &'a [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major, `row_stride` elements from row to row.
    pub fn strided(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        if let Some(last) = last_index(rows, cols, row_stride, 1) {
            assert!(last < data.len(), "matrix view beyond its slice");
        }
        Self { data, rows, cols, row_stride, col_stride: 1 }
    }

    /// Any strides.
    pub fn with_strides(data: &'a [f32], rows: usize, cols: usize, strides: [usize; 2]) -> Self {
        let [row_stride, col_stride] = strides;
        if let Some(last) = last_index(rows, cols, row_stride, col_stride) {
            assert!(last < data.len(), "matrix view beyond its slice");
        }
        Self { data, rows, cols, row_stride, col_stride }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self {
            data: self.data,
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
        }
    }
}

/// A mutable row-major strided matrix.
pub(super) struct MatMut<'a> {
    ptr: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    _data: PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    /// Row-major, rows side by side.
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize) -> Self {
        Self::strided(data, rows, cols, cols)
    }

    /// Row-major, `row_stride` elements from row to row.
    pub fn strided(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        if let Some(last) = last_index(rows, cols, row_stride, 1) {
            assert!(last < data.len(), "matrix view beyond its slice");
        }
        Self { ptr: data.as_mut_ptr(), rows, cols, row_stride, _data: PhantomData }
    }
}

/// A buffer in which parallel tasks write interleaved, disjoint matrices.
pub(super) struct SharedBuffer<'a> {
    ptr: *mut f32,
    len: usize,
    _data: PhantomData<&'a mut [f32]>,
}

// SAFETY: the pointer is used only through `mat`, whose callers promise disjoint views.
#[allow(unsafe_code)]
unsafe impl Sync for SharedBuffer<'_> {}

impl<'a> SharedBuffer<'a> {
    pub fn new(data: &'a mut [f32]) -> Self {
        Self { ptr: data.as_mut_ptr(), len: data.len(), _data: PhantomData }
    }

    /// A view that starts at `offset`.
    ///
    /// # Safety
    /// No two views that live at the same time may share an element.
    #[allow(unsafe_code)]
    pub unsafe fn mat(
        &self,
        offset: usize,
        rows: usize,
        cols: usize,
        row_stride: usize,
    ) -> MatMut<'a> {
        let last = last_index(rows, cols, row_stride, 1);
        assert!(last.is_none_or(|last| offset + last < self.len), "view beyond the buffer");
        // SAFETY: in bounds by the assertion; an empty view is never read.
        let ptr = unsafe { self.ptr.add(if last.is_some() { offset } else { 0 }) };
        MatMut { ptr, rows, cols, row_stride, _data: PhantomData }
    }
}

/// Whether a product may use all threads. Work is split over rows and columns of the result, never over the inner
/// dimension, so the result is the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Threads {
    One,
    All,
}

/// `dst = alpha a b`, or `dst += alpha a b` with `accumulate`.
#[allow(unsafe_code)]
pub(super) fn gemm(
    dst: MatMut<'_>,
    accumulate: bool,
    alpha: f32,
    a: Mat<'_>,
    b: Mat<'_>,
    threads: Threads,
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert!(dst.rows == m && dst.cols == n && b.rows == k, "matrix shapes do not fit");
    // Below this a thread costs more than it brings.
    let parallel = threads == Threads::All && m * n * k > 1 << 18;
    let parallelism = if parallel { gemm::Parallelism::Rayon(0) } else { gemm::Parallelism::None };
    // SAFETY: constructors and `SharedBuffer::mat` have checked that all three views lie in their slices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.ptr,
            1,
            dst.row_stride as isize,
            accumulate,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}
