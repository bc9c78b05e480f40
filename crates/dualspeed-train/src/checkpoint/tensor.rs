//! A tensor on the host, as a checkpoint writes it.

use std::borrow::Cow;

use safetensors::{Dtype, View};

/// A tensor on the host: row-major f32 values and their shape.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// The shape.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Vec<f32>,
}

impl HostTensor {
    /// The values as a file holds them: little-endian, without padding.
    pub(super) fn bytes(&self) -> Cow<'_, [u8]> {
        if cfg!(target_endian = "little") {
            return Cow::Borrowed(bytemuck::cast_slice(&self.values));
        }
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

impl View for &HostTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        self.bytes()
    }

    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}
