//! Scans of sequential files: whole blocks.

use super::JpegError;
use super::bits::Bits;
use super::header::{Reader, Scan, ZIGZAG};
use super::huffman::{HuffmanTable, NO_TABLE, extend};
use super::planes::Planes;

/// Decodes one scan into the samples of `planes`.
pub(super) fn decode_scan(
    planes: &mut Planes,
    reader: &mut Reader<'_>,
    scan: &Scan,
) -> Result<(), JpegError> {
    let of = |[_, dc, ac]: &[usize; 3]| {
        let (dc, ac) = (reader.dc[*dc].clone(), reader.ac[*ac].clone());
        Ok((dc.ok_or(NO_TABLE)?, ac.ok_or(NO_TABLE)?))
    };
    let tables = scan.components.iter().map(of).collect::<Result<Vec<_>, _>>()?;
    planes.walk(reader, scan, |bits, carried, slot, block| {
        let (dc, ac) = &tables[slot];
        sequential_block(bits, dc, ac, &mut carried.dc[slot], block)
    })
}

/// All coefficients of a block, in natural order.
fn sequential_block(
    bits: &mut Bits<'_>,
    dc: &HuffmanTable,
    ac: &HuffmanTable,
    last: &mut i32,
    block: &mut [i16; 64],
) -> Result<(), JpegError> {
    let size = u32::from(dc.symbol(bits)?);
    *last = last.wrapping_add(extend(bits.take(size), size));
    block[0] = *last as i16;
    let mut k = 1;
    while k < 64 {
        if let Some((value, zeros)) = ac.short_coefficient(bits) {
            k += usize::from(zeros);
            block[usize::from(ZIGZAG[k & 63])] = value;
            k += 1;
            continue;
        }
        let symbol = ac.symbol(bits)?;
        let (zeros, size) = (usize::from(symbol >> 4), u32::from(symbol & 15));
        match (size, zeros) {
            (0, 15) => k += 16,
            (0, _) => break,
            _ => {
                k += zeros;
                let value = extend(bits.take(size), size);
                block[usize::from(ZIGZAG[k & 63])] = value as i16;
                k += 1;
            }
        }
    }
    match k {
        // Zeros past the last coefficient.
        65.. => Err(JpegError::Broken("the data of a scan is damaged")),
        _ => Ok(()),
    }
}
