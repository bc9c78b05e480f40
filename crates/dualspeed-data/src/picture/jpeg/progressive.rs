//! Scans of progressive files: a band of coefficients, some of their bits.

use super::JpegError;
use super::bits::Bits;
use super::header::{Reader, Scan, ZIGZAG};
use super::huffman::{HuffmanTable, NO_TABLE, extend};
use super::planes::{Carried, Planes};

const DAMAGED: JpegError = JpegError::Broken("the data of a scan is damaged");

/// Decodes one scan into the coefficients of `planes`.
pub(super) fn decode_scan(
    planes: &mut Planes,
    reader: &mut Reader<'_>,
    scan: &Scan,
) -> Result<(), JpegError> {
    let low = u32::from(scan.low);
    match (scan.band[0], scan.high) {
        (0, 0) => {
            let tables = scan.components.iter().map(|[_, dc, _]| reader.dc[*dc].clone());
            let tables: Vec<HuffmanTable> = tables.collect::<Option<_>>().ok_or(NO_TABLE)?;
            planes.walk(reader, scan, |bits, carried, slot, block| {
                let size = u32::from(tables[slot].symbol(bits)?);
                let dc = &mut carried.dc[slot];
                *dc = dc.wrapping_add(extend(bits.take(size), size));
                block[0] = (*dc << low) as i16;
                Ok(())
            })
        }
        (0, _) => planes.walk(reader, scan, |bits, _, _, block| {
            block[0] |= (bits.take(1) << low) as i16;
            Ok(())
        }),
        (_, high) => {
            let table = reader.ac[scan.components[0][2]].clone().ok_or(NO_TABLE)?;
            let [first, last] = scan.band;
            planes.walk(reader, scan, |bits, carried, _, block| match high {
                0 => first_bits(bits, &table, carried, block, [first, last], low),
                _ => next_bit(bits, &table, carried, block, [first, last], low),
            })
        }
    }
}

/// The highest bits of a band.
fn first_bits(
    bits: &mut Bits<'_>,
    table: &HuffmanTable,
    carried: &mut Carried,
    block: &mut [i16; 64],
    [first, last]: [usize; 2],
    low: u32,
) -> Result<(), JpegError> {
    if carried.empty_blocks > 0 {
        carried.empty_blocks -= 1;
        return Ok(());
    }
    let mut k = first;
    while k <= last {
        let symbol = table.symbol(bits)?;
        let (zeros, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
        match (size, zeros) {
            (0, 15) => k += 16,
            (0, _) => {
                carried.empty_blocks = (1 << zeros) - 1 + bits.take(zeros);
                break;
            }
            _ => {
                k += zeros as usize;
                let value = extend(bits.take(size), size);
                let at = ZIGZAG.get(k).ok_or(DAMAGED)?;
                block[usize::from(*at)] = (value << low) as i16;
                k += 1;
            }
        }
    }
    Ok(())
}

/// One more bit of a band.
fn next_bit(
    bits: &mut Bits<'_>,
    table: &HuffmanTable,
    carried: &mut Carried,
    block: &mut [i16; 64],
    [first, last]: [usize; 2],
    low: u32,
) -> Result<(), JpegError> {
    let bit = 1i16 << low;
    let refine = |bits: &mut Bits<'_>, value: &mut i16| {
        if bits.take(1) == 1 && *value & bit == 0 {
            *value = value.wrapping_add(if *value >= 0 { bit } else { -bit });
        }
    };
    let mut k = first;
    if carried.empty_blocks == 0 {
        while k <= last {
            let symbol = table.symbol(bits)?;
            let (mut zeros, size) = (u32::from(symbol >> 4), symbol & 15);
            let new = match (size, zeros) {
                (0, 15) => 0,
                (0, _) => {
                    carried.empty_blocks = (1 << zeros) + bits.take(zeros);
                    break;
                }
                (1, _) if bits.take(1) == 1 => bit,
                (1, _) => -bit,
                _ => return Err(DAMAGED),
            };
            // Over `zeros` coefficients without history; those with history get their bit on the way.
            while k <= last {
                let value = &mut block[usize::from(ZIGZAG[k])];
                if *value != 0 {
                    refine(bits, value);
                } else if zeros == 0 {
                    *value = new;
                    break;
                } else {
                    zeros -= 1;
                }
                k += 1;
            }
            if k > last && new != 0 {
                return Err(DAMAGED);
            }
            k += 1;
        }
    }
    if carried.empty_blocks > 0 {
        for at in &ZIGZAG[k.min(last + 1)..=last] {
            let value = &mut block[usize::from(*at)];
            if *value != 0 {
                refine(bits, value);
            }
        }
        carried.empty_blocks -= 1;
    }
    Ok(())
}
