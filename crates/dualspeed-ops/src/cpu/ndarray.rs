//! The ndarray backend: f32 tensors through the fused bodies, f64 through the plain ones.

use std::borrow::Cow;

use burn::tensor::TensorData;
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn_ndarray::{NdArray, NdArrayTensor, SharedArray};

use super::fused_methods;
use super::view::{Host, View};
use crate::Backend;
use crate::types::*;

impl<E, I, Q> Host for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
    Self: BurnBackend<FloatTensorPrimitive = NdArrayTensor>,
{
    fn view(tensor: &NdArrayTensor) -> Option<View<'_>> {
        let NdArrayTensor::F32(storage) = tensor else {
            return None;
        };
        let array = storage.view();
        let shape = array.shape().to_vec();
        let strides: Option<Vec<usize>> =
            array.strides().iter().map(|stride| usize::try_from(*stride).ok()).collect();
        // `to_slice` keeps the lifetime of the storage; `as_slice` would borrow the temporary view.
        if array.is_standard_layout() {
            return array.to_slice().map(|data| View::row_major(Cow::Borrowed(data), shape));
        }
        if let (Some(strides), Some(data)) = (strides, array.to_slice_memory_order()) {
            return Some(View::strided(data, shape, strides));
        }
        let mut data = Vec::with_capacity(array.len());
        for row in array.rows() {
            match row.as_slice() {
                Some(row) => data.extend_from_slice(row),
                None => data.extend(row.iter().copied()),
            }
        }
        Some(View::row_major(Cow::Owned(data), shape))
    }

    fn make(data: Vec<f32>, shape: &[usize]) -> NdArrayTensor {
        NdArrayTensor::from_data(TensorData::new(data, shape.to_vec()))
    }
}

impl<E, I, Q> Backend for NdArray<E, I, Q>
where
    NdArrayTensor: From<SharedArray<E>> + From<SharedArray<I>>,
    Self: BurnBackend<FloatTensorPrimitive = NdArrayTensor>,
{
    fused_methods!();
}
