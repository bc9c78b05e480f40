//! The GPU backends of Burn, on the plain bodies.

use burn::tensor::backend::Backend as BurnBackend;

use crate::Backend;

/// wgpu without fusion: the alias is the bare backend then.
#[cfg(feature = "wgpu")]
impl<F, I, T> Backend for burn_wgpu::Wgpu<F, I, T>
where
    F: burn_wgpu::FloatElement,
    I: burn_wgpu::IntElement,
    T: burn_wgpu::BoolElement,
    Self: BurnBackend,
{
}

/// CUDA without fusion: the alias is the bare backend then.
#[cfg(feature = "cuda")]
impl<F, I> Backend for burn_cuda::Cuda<F, I> where Self: BurnBackend {}
