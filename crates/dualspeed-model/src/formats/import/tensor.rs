//! A tensor on the host, in the precision of its file, and what importing does to it.

use std::io::Read;

use burn::tensor::{DType, TensorData};
use half::vec::HalfBitsVecExt;
use half::{bf16, f16};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::turn::{read_turned, turned};
use crate::config::Dtype;

/// Element types that weights come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)]
pub enum FloatType {
    F32,
    F16,
    Bf16,
}

impl FloatType {
    /// Bytes of an element.
    pub fn size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// Burn's name for it.
    pub fn dtype(self) -> DType {
        match self {
            Self::F32 => DType::F32,
            Self::F16 => DType::F16,
            Self::Bf16 => DType::BF16,
        }
    }
}

impl From<Dtype> for FloatType {
    fn from(dtype: Dtype) -> Self {
        match dtype {
            Dtype::Float32 => Self::F32,
            Dtype::Float16 => Self::F16,
            Dtype::BFloat16 => Self::Bf16,
        }
    }
}

impl From<FloatType> for Dtype {
    fn from(dtype: FloatType) -> Self {
        match dtype {
            FloatType::F32 => Self::Float32,
            FloatType::F16 => Self::Float16,
            FloatType::Bf16 => Self::BFloat16,
        }
    }
}

/// The values of a tensor.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    Bf16(Vec<bf16>),
}

/// Row-major values with their shape.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// The shape; its product is the number of values.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Values,
}

impl HostTensor {
    /// 32-bit values.
    pub fn f32(shape: Vec<usize>, values: Vec<f32>) -> Self {
        Self { shape, values: Values::F32(values) }
    }

    /// Reads little-endian values straight into place.
    ///
    /// # Errors
    /// What the reader says, if it ends early for instance.
    pub fn read_le(
        shape: Vec<usize>,
        dtype: FloatType,
        reader: &mut impl Read,
    ) -> std::io::Result<Self> {
        fn halves(count: usize, reader: &mut impl Read) -> std::io::Result<Vec<u16>> {
            let mut bits = vec![0u16; count];
            reader.read_exact(bytemuck::cast_slice_mut(&mut bits))?;
            if cfg!(target_endian = "big") {
                bits.iter_mut().for_each(|bits| *bits = u16::from_le(*bits));
            }
            Ok(bits)
        }
        let count = shape.iter().product();
        let values = match dtype {
            FloatType::F32 => {
                let mut values = vec![0f32; count];
                reader.read_exact(bytemuck::cast_slice_mut(&mut values))?;
                if cfg!(target_endian = "big") {
                    let swap =
                        |value: &mut f32| *value = f32::from_bits(value.to_bits().swap_bytes());
                    values.iter_mut().for_each(swap);
                }
                Values::F32(values)
            }
            FloatType::F16 => Values::F16(halves(count, reader)?.reinterpret_into()),
            FloatType::Bf16 => Values::Bf16(halves(count, reader)?.reinterpret_into()),
        };
        Ok(Self { shape, values })
    }

    /// [`HostTensor::read_le`] of a matrix, as [`HostTensor::transposed`] leaves it, in one go. Tensors of other ranks are
    /// read as they are.
    ///
    /// # Errors
    /// As [`HostTensor::read_le`].
    pub fn read_le_transposed(
        shape: Vec<usize>,
        dtype: FloatType,
        reader: &mut (impl Read + Send),
    ) -> std::io::Result<Self> {
        let [rows, columns] = shape[..] else { return Self::read_le(shape, dtype, reader) };
        let values = match dtype {
            FloatType::F32 => Values::F32(read_turned(rows, columns, reader)?),
            FloatType::F16 => {
                Values::F16(read_turned::<u16>(rows, columns, reader)?.reinterpret_into())
            }
            FloatType::Bf16 => {
                Values::Bf16(read_turned::<u16>(rows, columns, reader)?.reinterpret_into())
            }
        };
        Ok(Self { shape: vec![columns, rows], values })
    }

    /// The element type.
    pub fn dtype(&self) -> FloatType {
        match &self.values {
            Values::F32(_) => FloatType::F32,
            Values::F16(_) => FloatType::F16,
            Values::Bf16(_) => FloatType::Bf16,
        }
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::F32(values) => values.len(),
            Values::F16(values) => values.len(),
            Values::Bf16(values) => values.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values as 32-bit floats.
    pub fn to_f32(&self) -> Vec<f32> {
        match &self.values {
            Values::F32(values) => values.clone(),
            Values::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
            Values::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
        }
    }

    /// The same in another element type, rounding to nearest.
    pub fn cast(self, dtype: FloatType) -> Self {
        if self.dtype() == dtype {
            return self;
        }
        let from = match self.values {
            Values::F32(values) => values,
            Values::F16(values) => values.par_iter().map(|value| value.to_f32()).collect(),
            Values::Bf16(values) => values.par_iter().map(|value| value.to_f32()).collect(),
        };
        let values = match dtype {
            FloatType::F32 => Values::F32(from),
            FloatType::F16 => Values::F16(from.par_iter().map(|v| f16::from_f32(*v)).collect()),
            FloatType::Bf16 => Values::Bf16(from.par_iter().map(|v| bf16::from_f32(*v)).collect()),
        };
        Self { shape: self.shape, values }
    }

    /// A matrix with rows and columns exchanged: PyTorch keeps linear layers as `[out, in]`, Burn as `[in, out]`.
    /// Tensors of other ranks are returned as they are.
    pub fn transposed(self) -> Self {
        let [rows, columns] = self.shape[..] else { return self };
        let values = match &self.values {
            Values::F32(values) => Values::F32(turned(values, rows, columns)),
            Values::F16(values) => Values::F16(turned(values, rows, columns)),
            Values::Bf16(values) => Values::Bf16(turned(values, rows, columns)),
        };
        Self { shape: vec![columns, rows], values }
    }

    /// The same values in another shape of as many elements.
    pub fn reshaped(self, shape: Vec<usize>) -> Option<Self> {
        (shape.iter().product::<usize>() == self.len()).then_some(Self { shape, ..self })
    }

    /// As Burn's tensor data.
    pub fn into_data(self) -> TensorData {
        match self.values {
            Values::F32(values) => TensorData::new(values, self.shape),
            Values::F16(values) => TensorData::new(values, self.shape),
            Values::Bf16(values) => TensorData::new(values, self.shape),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_casts_every_type() {
        let values = [1.0f32, -2.5, 3.140_625];
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = HostTensor::read_le(vec![3], FloatType::F32, &mut &bytes[..]).unwrap();
        assert!(HostTensor::read_le(vec![4], FloatType::F32, &mut &bytes[..]).is_err());
        for dtype in [FloatType::F16, FloatType::Bf16, FloatType::F32] {
            let cast = tensor.clone().cast(dtype);
            assert_eq!(cast.dtype(), dtype);
            assert_eq!(cast.to_f32(), values);
        }
    }
}
