//! The Flex backend: f32 tensors through the fused bodies, the other dtypes through the plain ones.

use std::borrow::Cow;

use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{DType, TensorData};
use burn_flex::{Flex, FlexTensor};

use super::fused_methods;
use super::view::{Host, View};
use crate::Backend;
use crate::types::*;

impl Host for Flex {
    fn view(tensor: &FlexTensor) -> Option<View<'_>> {
        if tensor.dtype() != DType::F32 {
            return None;
        }
        let layout = tensor.layout();
        let shape = layout.shape().to_vec();
        let strides: Option<Vec<usize>> =
            layout.strides().iter().map(|stride| usize::try_from(*stride).ok()).collect();
        Some(match (strides, tensor.storage::<f32>().get(layout.start_offset()..)) {
            (Some(strides), Some(data)) => View::strided(data, shape, strides),
            _ => {
                let copy = tensor.to_contiguous();
                View::row_major(Cow::Owned(copy.storage::<f32>().to_vec()), shape)
            }
        })
    }

    fn make(data: Vec<f32>, shape: &[usize]) -> FlexTensor {
        FlexTensor::from_data(TensorData::new(data, shape.to_vec()))
    }
}

impl Backend for Flex {
    fused_methods!();
}
