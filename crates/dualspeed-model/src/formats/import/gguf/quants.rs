//! GGUF's element types and what their blocks stand for.
//!
//! Source: the layout of `block_q4_0`, `block_q4_1` and `block_q8_0` in ggml.

use half::{bf16, f16};
use rayon::prelude::*;

use crate::formats::import::tensor::Values;

/// Values in a quantised block.
const BLOCK: usize = 32;

/// An element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GgmlType {
    F32,
    F16,
    Bf16,
    /// 4 bits around 8, one scale.
    Q4_0,
    /// 4 bits, scale and minimum.
    Q4_1,
    /// 8 bits, one scale.
    Q8_0,
    /// One that is not read.
    Other(u32),
}

impl GgmlType {
    pub fn new(code: u32) -> Self {
        match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            30 => Self::Bf16,
            other => Self::Other(other),
        }
    }

    pub fn name(self) -> String {
        match self {
            Self::F32 => "F32".into(),
            Self::F16 => "F16".into(),
            Self::Bf16 => "BF16".into(),
            Self::Q4_0 => "Q4_0".into(),
            Self::Q4_1 => "Q4_1".into(),
            Self::Q8_0 => "Q8_0".into(),
            Self::Other(code) => format!("type {code}"),
        }
    }

    /// Values and bytes of a block; `None` for a type that is not read.
    fn block(self) -> Option<(usize, usize)> {
        Some(match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (BLOCK, 2 + BLOCK / 2),
            Self::Q4_1 => (BLOCK, 4 + BLOCK / 2),
            Self::Q8_0 => (BLOCK, 2 + BLOCK),
            Self::Other(_) => return None,
        })
    }

    /// Bytes of `count` values in rows of `row`.
    pub fn bytes(self, count: usize, row: usize) -> Result<usize, String> {
        let (values, bytes) = self.block().ok_or_else(|| {
            format!("{} is not read; known are F32, F16, BF16, Q4_0, Q4_1 and Q8_0", self.name())
        })?;
        if !row.is_multiple_of(values) {
            return Err(format!("rows of {row} values are no whole blocks of {values}"));
        }
        (count / values).checked_mul(bytes).ok_or_else(|| "its size overflows".into())
    }

    /// The values of whole blocks.
    pub fn decode(self, bytes: &[u8]) -> Values {
        match self {
            Self::F16 => {
                let (pairs, _) = bytes.as_chunks::<2>();
                Values::F16(pairs.iter().map(|b| f16::from_le_bytes(*b)).collect())
            }
            Self::Bf16 => {
                let (pairs, _) = bytes.as_chunks::<2>();
                Values::Bf16(pairs.iter().map(|b| bf16::from_le_bytes(*b)).collect())
            }
            Self::F32 | Self::Other(_) => {
                let (quads, _) = bytes.as_chunks::<4>();
                Values::F32(quads.iter().map(|b| f32::from_le_bytes(*b)).collect())
            }
            Self::Q4_0 => blocks(bytes, |block: &[u8; 18], out| {
                let scale = half(block, 0);
                nibbles(&block[2..], out, |q| (f32::from(q) - 8.0) * scale);
            }),
            Self::Q4_1 => blocks(bytes, |block: &[u8; 20], out| {
                let (scale, least) = (half(block, 0), half(block, 2));
                nibbles(&block[4..], out, |q| f32::from(q) * scale + least);
            }),
            Self::Q8_0 => blocks(bytes, |block: &[u8; 34], out| {
                let scale = half(block, 0);
                for (value, q) in out.iter_mut().zip(&block[2..]) {
                    *value = f32::from(*q as i8) * scale;
                }
            }),
        }
    }
}

fn half(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Low halves first, then high halves.
fn nibbles(bytes: &[u8], out: &mut [f32], value: impl Fn(u8) -> f32) {
    let (low, high) = out.split_at_mut(BLOCK / 2);
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (value(byte & 0xf), value(byte >> 4));
    }
}

fn blocks<const N: usize>(bytes: &[u8], decode: impl Fn(&[u8; N], &mut [f32]) + Sync) -> Values {
    let (blocks, _) = bytes.as_chunks::<N>();
    let mut values = vec![0.0; blocks.len() * BLOCK];
    values
        .par_chunks_mut(BLOCK)
        .zip(blocks)
        .with_min_len(1 << 10)
        .for_each(|(out, block)| decode(block, out));
    Values::F32(values)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoded(kind: GgmlType, head: &[f32], body: &[u8]) -> Vec<f32> {
        let mut bytes: Vec<u8> =
            head.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        bytes.extend(body);
        match kind.decode(&bytes) {
            Values::F32(values) => values,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn blocks_mean_what_ggml_says() {
        let body: Vec<u8> = (0..16).map(|i| i | ((15 - i) << 4)).collect();
        let q4_0 = decoded(GgmlType::Q4_0, &[0.5], &body);
        assert_eq!((q4_0[0], q4_0[15], q4_0[16], q4_0[31]), (-4.0, 3.5, 3.5, -4.0));
        let q4_1 = decoded(GgmlType::Q4_1, &[2.0, -1.0], &body);
        assert_eq!((q4_1[0], q4_1[15], q4_1[16], q4_1[31]), (-1.0, 29.0, 29.0, -1.0));
        let bytes: Vec<u8> = (0..32).map(|i| (i as i8 - 16) as u8).collect();
        let q8_0 = decoded(GgmlType::Q8_0, &[0.25], &bytes);
        assert_eq!((q8_0[0], q8_0[16], q8_0[31]), (-4.0, 0.0, 3.75));
    }

    #[test]
    fn sizes_are_whole_blocks() {
        assert_eq!(GgmlType::Q4_1.bytes(64, 64), Ok(40));
        assert!(GgmlType::Q8_0.bytes(48, 48).is_err());
        assert!(GgmlType::new(12).bytes(256, 256).unwrap_err().contains("type 12"));
    }
}
