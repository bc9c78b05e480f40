//! The CPU backends.

use burn::tensor::backend::Backend as BurnBackend;

use crate::Backend;

#[cfg(feature = "ndarray")]
impl<E, I, Q> Backend for burn_ndarray::NdArray<E, I, Q>
where
    burn_ndarray::NdArrayTensor: From<burn_ndarray::SharedArray<E>>,
    burn_ndarray::NdArrayTensor: From<burn_ndarray::SharedArray<I>>,
    Self: BurnBackend,
{
}

#[cfg(feature = "flex")]
impl Backend for burn_flex::Flex {}
