//! What a matrix product is: sizes, layouts, addresses.

use super::element::Element;

/// An operand as it lies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    /// Elements from one row of the memory to the next.
    pub(super) stride: usize,
    /// The memory holds the transpose of the operand.
    pub(super) transposed: bool,
}

impl Layout {
    pub(super) fn rows(stride: usize) -> Self {
        Self { stride, transposed: false }
    }

    /// The transpose of the operand in the same memory.
    pub(super) fn t(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}

/// Several products of one shape: how many, and the elements between their operands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Batch {
    pub(super) count: usize,
    pub(super) a: usize,
    pub(super) b: usize,
    pub(super) c: usize,
}

/// `C = alpha A B + beta C' (+ bias)`, `C'` being `C` or another matrix of its layout: `A` is `[m, k]`, `B` `[k, n]`, `C` `[m, n]` in rows of `c_stride` elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: Layout,
    pub(super) b: Layout,
    pub(super) c_stride: usize,
    /// Of `A` and `B`.
    pub(super) input: Element,
    /// Of `C`; f32 or the same as `input`.
    pub(super) output: Element,
    /// Adds a row of `n` elements of the output's type.
    pub(super) bias: bool,
    pub(super) batch: Option<Batch>,
    /// Never through tf32.
    pub(super) exact: bool,
}

impl Product {
    /// A product into rows without gaps, of the operands' type.
    pub(super) fn new([m, n, k]: [usize; 3], a: Layout, b: Layout, element: Element) -> Self {
        Self {
            m,
            n,
            k,
            a,
            b,
            c_stride: n,
            input: element,
            output: element,
            bias: false,
            batch: None,
            exact: false,
        }
    }

    /// The same into another type.
    pub(super) fn into(self, output: Element) -> Self {
        Self { output, ..self }
    }
}

/// Addresses of the operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub(super) a: u64,
    pub(super) b: u64,
    pub(super) c: u64,
    /// 0 without one.
    pub(super) bias: u64,
    /// What `beta` multiplies, in the layout of `C`; 0: `C` itself.
    pub(super) add: u64,
}

impl Operands {
    pub(super) fn new(a: u64, b: u64, c: u64) -> Self {
        Self { a, b, c, bias: 0, add: 0 }
    }
}
