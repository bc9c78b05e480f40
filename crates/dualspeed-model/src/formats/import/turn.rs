//! Matrices with rows and columns exchanged: PyTorch keeps linear layers as `[out, in]`, Burn as `[in, out]`.
//!
//! A matrix is turned while it is read: one thread reads the next few megabytes, the others put the last ones in place. The
//! file is waited for and the processor used at once, and no second copy of a large matrix is ever held.

use std::io::Read;
use std::sync::mpsc::{channel, sync_channel};

use bytemuck::Pod;
use rayon::prelude::*;

/// Side of the square that is turned at once: a row of it fills a cache line or two.
const TILE: usize = 32;
/// Bytes read at once: enough for the disk, and still in the cache when they are put in place.
const PIECE: usize = 4 << 20;

/// A matrix of `rows` in memory, turned.
pub(super) fn turned<T: Pod + Send + Sync>(values: &[T], rows: usize, columns: usize) -> Vec<T> {
    let mut result = vec![T::zeroed(); values.len()];
    place(values, columns, &mut result, rows, 0);
    result
}

/// A matrix of `rows`, turned, from a reader of its little-endian rows.
///
/// # Errors
/// What the reader says, if it ends early for instance.
pub(super) fn read_turned<T: Pod + Send + Sync>(
    rows: usize,
    columns: usize,
    reader: &mut (impl Read + Send),
) -> std::io::Result<Vec<T>> {
    let mut result = vec![T::zeroed(); rows * columns];
    if result.is_empty() {
        return Ok(result);
    }
    let height =
        (PIECE / (columns * size_of::<T>())).next_multiple_of(TILE).clamp(TILE, rows.max(TILE));
    let (read, pieces) = sync_channel::<std::io::Result<Vec<T>>>(1);
    // Two buffers go round: one is read into, one put in place.
    let (done, free) = channel();
    for _ in 0..2 {
        // Fails only if the receiver is gone, which is below.
        let _ = done.send(Vec::new());
    }
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut left = rows * columns;
            while left > 0 {
                let Ok(mut piece) = free.recv() else { return };
                piece.resize(left.min(height * columns), T::zeroed());
                left -= piece.len();
                let outcome = reader.read_exact(bytemuck::cast_slice_mut(&mut piece));
                let failed = outcome.is_err();
                if read.send(outcome.map(|()| piece)).is_err() || failed {
                    return;
                }
            }
        });
        for top in (0..rows).step_by(height) {
            let ended = || std::io::Error::other("the reading thread has ended");
            let mut piece = pieces.recv().map_err(|_| ended())??;
            if cfg!(target_endian = "big") {
                let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut piece);
                bytes.chunks_exact_mut(size_of::<T>()).for_each(<[u8]>::reverse);
            }
            place(&piece, columns, &mut result, rows, top);
            let _ = done.send(piece);
        }
        Ok(())
    })
    .map(|()| result)
}

/// Puts whole rows of a matrix, from row `top` on, into the turned matrix of `rows` columns.
fn place<T: Pod + Send + Sync>(
    piece: &[T],
    columns: usize,
    turned: &mut [T],
    rows: usize,
    top: usize,
) {
    if piece.is_empty() {
        return;
    }
    let height = piece.len() / columns;
    let bands = turned.par_chunks_mut(TILE * rows).enumerate();
    bands.for_each(|(band, lines)| {
        let mut tile = [T::zeroed(); TILE * TILE];
        let (first, width) = (band * TILE, lines.len() / rows);
        for from in (0..height).step_by(TILE) {
            let count = TILE.min(height - from);
            // A row of the tile is read at once, a column of it written at once: no line of the cache is fetched twice,
            // whatever power of two the rows are apart.
            for (row, tile) in tile.chunks_exact_mut(TILE).enumerate().take(count) {
                let start = (from + row) * columns + first;
                tile[..width].copy_from_slice(&piece[start..start + width]);
            }
            for (column, line) in lines.chunks_exact_mut(rows).enumerate() {
                let line = &mut line[top + from..][..count];
                for (to, row) in line.iter_mut().zip(tile.chunks_exact(TILE)) {
                    *to = row[column];
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_shapes_and_many_pieces() {
        // The last two are read in several pieces, the last of them short.
        for (rows, columns) in
            [(1, 1), (3, 70), (70, 3), (33, 65), (64, 64), (2100, 1030), (77, 40_000)]
        {
            let values: Vec<u32> = (0..(rows * columns) as u32).collect();
            let expected: Vec<u32> = (0..columns)
                .flat_map(|column| (0..rows).map(move |row| (row * columns + column) as u32))
                .collect();
            assert!(turned(&values, rows, columns) == expected, "{rows} x {columns}");
            let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let read: Vec<u32> = read_turned(rows, columns, &mut &bytes[..]).unwrap();
            assert!(read == expected, "{rows} x {columns}, read");
            assert!(read_turned::<u32>(rows, columns, &mut &bytes[..bytes.len() - 1]).is_err());
        }
        assert_eq!(read_turned::<u16>(0, 5, &mut &[][..]).unwrap(), [0u16; 0]);
    }
}
