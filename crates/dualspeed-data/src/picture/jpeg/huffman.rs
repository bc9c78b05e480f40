//! Huffman codes of coefficients.

use super::JpegError;
use super::bits::Bits;

/// Bits that are looked up at once.
const FAST: u32 = 9;

/// A code table.
#[derive(Clone, Debug)]
pub(super) struct HuffmanTable {
    /// By the next [`FAST`] bits: symbol and length of a short code, else 0 as the length.
    short: Box<[(u8, u8); 1 << FAST]>,
    /// By the next [`FAST`] bits, where they hold a whole coefficient: value, zeros before it and bits in all, else 0 bits.
    whole: Box<[(i16, u8, u8); 1 << FAST]>,
    /// By length: the first code above, left-aligned in 16 bits; and what to add to a code for its symbol's index.
    above: [u32; 18],
    offset: [i32; 17],
    symbols: Vec<u8>,
}

pub(super) const NO_TABLE: JpegError = JpegError::Broken("a Huffman table is missing");
const BAD_CODE: JpegError = JpegError::Broken("the data of a scan is damaged");

impl HuffmanTable {
    /// From the number of codes of each length and their symbols.
    pub(super) fn new(counts: &[u8; 16], symbols: &[u8], dc: bool) -> Result<Self, JpegError> {
        const BAD: JpegError = JpegError::Broken("a Huffman table is impossible");
        if symbols.len() > 256 || dc && symbols.iter().any(|symbol| *symbol > 15) {
            return Err(BAD);
        }
        let mut table = Self {
            short: Box::new([(0, 0); 1 << FAST]),
            whole: Box::new([(0, 0, 0); 1 << FAST]),
            above: [0; 18],
            offset: [0; 17],
            symbols: symbols.to_vec(),
        };
        let (mut code, mut index) = (0u32, 0usize);
        for length in 1..=16u32 {
            table.offset[length as usize] = index as i32 - code as i32;
            for _ in 0..counts[length as usize - 1] {
                if code >= 1 << length {
                    return Err(BAD);
                }
                if length <= FAST {
                    let first = (code << (FAST - length)) as usize;
                    let entry = (symbols[index], length as u8);
                    table.short[first..first + (1 << (FAST - length))].fill(entry);
                }
                code += 1;
                index += 1;
            }
            table.above[length as usize] = code << (16 - length);
            code <<= 1;
        }
        table.above[17] = u32::MAX;
        if !dc {
            table.find_whole();
        }
        Ok(table)
    }

    /// Coefficients that fit into [`FAST`] bits with their code.
    fn find_whole(&mut self) {
        for next in 0..1u32 << FAST {
            let (symbol, length) = self.short[next as usize];
            let (zeros, size) = (symbol >> 4, u32::from(symbol & 15));
            let bits = u32::from(length) + size;
            if length == 0 || size == 0 || bits > FAST {
                continue;
            }
            let raw = (next >> (FAST - bits)) & ((1 << size) - 1);
            self.whole[next as usize] = (extend(raw, size) as i16, zeros, bits as u8);
        }
    }

    /// The next symbol.
    #[inline(always)]
    pub(super) fn symbol(&self, bits: &mut Bits<'_>) -> Result<u8, JpegError> {
        bits.fill();
        let (symbol, length) = self.short[bits.peek(FAST) as usize];
        if length > 0 {
            bits.skip(u32::from(length));
            return Ok(symbol);
        }
        let next = bits.peek(16);
        let mut length = FAST + 1;
        while next >= self.above[length as usize] {
            length += 1;
        }
        if length > 16 {
            return Err(BAD_CODE);
        }
        bits.skip(length);
        let index = (next >> (16 - length)) as i32 + self.offset[length as usize];
        self.symbols.get(index as usize).copied().ok_or(BAD_CODE)
    }

    /// The next coefficient, if it is a short one: value and zeros before it.
    #[inline(always)]
    pub(super) fn short_coefficient(&self, bits: &mut Bits<'_>) -> Option<(i16, u8)> {
        bits.fill();
        let (value, zeros, length) = self.whole[bits.peek(FAST) as usize];
        if length == 0 {
            return None;
        }
        bits.skip(u32::from(length));
        Some((value, zeros))
    }
}

/// The value that `size` bits stand for.
#[inline]
pub(super) fn extend(raw: u32, size: u32) -> i32 {
    match size {
        0 => 0,
        _ if raw < 1 << (size - 1) => raw as i32 - ((1 << size) - 1),
        _ => raw as i32,
    }
}
