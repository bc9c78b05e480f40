//! The GPU backends of Burn that run on the plain bodies.

use crate::Backend;

/// wgpu without fusion: the alias is the bare backend then.
impl<F, I, T> Backend for burn_wgpu::Wgpu<F, I, T>
where
    F: burn_wgpu::FloatElement,
    I: burn_wgpu::IntElement,
    T: burn_wgpu::BoolElement,
{
}
