//! Work over rows in parallel: pieces of fixed size, so that sums do not depend on the number of threads.

use rayon::prelude::*;

/// Elements per piece: fits the second-level cache with a few operands.
const PIECE: usize = 1 << 14;

/// Rows per piece for rows of `d` elements.
pub(super) fn piece_rows(d: usize) -> usize {
    (PIECE / d.max(1)).max(1)
}

/// An output buffer; its pages are touched first by the thread that fills them.
pub(super) fn zeros(len: usize) -> Vec<f32> {
    vec![0.0; len]
}

/// `f(first_row, piece)` for pieces of `out`, whose rows have `d` elements.
pub(super) fn for_rows(out: &mut [f32], d: usize, f: impl Fn(usize, &mut [f32]) + Sync) {
    if d == 0 {
        return;
    }
    let rows = piece_rows(d);
    out.par_chunks_mut(rows * d).enumerate().for_each(|(i, piece)| f(i * rows, piece));
}

/// Sums over rows, `[columns]`: `f(rows, partial)` adds its range of rows to a partial sum; the partial sums are added
/// in order.
pub(super) fn reduce_rows(
    rows: usize,
    d: usize,
    columns: usize,
    f: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
) -> Vec<f32> {
    let step = piece_rows(d);
    let partials: Vec<Vec<f32>> = (0..rows.div_ceil(step))
        .into_par_iter()
        .map(|i| {
            let mut partial = zeros(columns);
            f(i * step..((i + 1) * step).min(rows), &mut partial);
            partial
        })
        .collect();
    let mut total = zeros(columns);
    for partial in partials {
        for (sum, value) in total.iter_mut().zip(partial) {
            *sum += value;
        }
    }
    total
}
