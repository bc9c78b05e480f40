//! The GPU backends of Burn, on the plain bodies.

use crate::Backend;

/// wgpu without fusion: the alias is the bare backend then.
#[cfg(feature = "wgpu")]
impl<F, I, T> Backend for burn_wgpu::Wgpu<F, I, T>
where
    F: burn_wgpu::FloatElement,
    I: burn_wgpu::IntElement,
    T: burn_wgpu::BoolElement,
{
}

/// CUDA without fusion: the alias is the bare backend then. burn-cuda does not export the bounds of its element types,
/// so they are listed.
#[cfg(feature = "cuda")]
macro_rules! cuda {
    ($($float:ty, $int:ty;)*) => {
        $(impl Backend for burn_cuda::Cuda<$float, $int> {})*
    };
}

#[cfg(feature = "cuda")]
cuda! {
    f32, i32;
    f32, i64;
    burn::tensor::f16, i32;
    burn::tensor::f16, i64;
    burn::tensor::bf16, i32;
    burn::tensor::bf16, i64;
}
