//! The backends compiled in (feature flags) and the choice among them.

use clap::ValueEnum;

#[cfg(not(any(feature = "ndarray", feature = "flex", feature = "wgpu", feature = "cuda")))]
compile_error!("dualspeed needs at least one backend feature: ndarray, flex, wgpu or cuda");

/// A backend by name. Only those compiled in exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// Burn's ndarray backend on the CPU, f32.
    #[cfg(feature = "ndarray")]
    Ndarray,
    /// Burn's flex backend on the CPU, f32.
    #[cfg(feature = "flex")]
    Flex,
    /// Vulkan, Metal or DirectX through wgpu, f32.
    #[cfg(feature = "wgpu")]
    Wgpu,
    /// NVIDIA GPUs, f32.
    #[cfg(feature = "cuda")]
    Cuda,
}

impl Default for BackendChoice {
    /// The fastest one compiled in: cuda, then wgpu, then flex, then ndarray; with the default
    /// features that is ndarray.
    fn default() -> Self {
        #[allow(unreachable_code)]
        {
            #[cfg(feature = "cuda")]
            return Self::Cuda;
            #[cfg(feature = "wgpu")]
            return Self::Wgpu;
            #[cfg(feature = "ndarray")]
            return Self::Ndarray;
            #[cfg(feature = "flex")]
            return Self::Flex;
        }
    }
}

impl BackendChoice {
    /// The name as written on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
    }
}

/// Runs `$body` with the type `$B` bound to the chosen autodiff backend and `$device` to its device.
#[macro_export]
macro_rules! with_backend {
    ($choice:expr, $index:expr, |$B:ident, $device:ident| $body:expr) => {
        match $choice {
            #[cfg(feature = "ndarray")]
            $crate::backend::BackendChoice::Ndarray => {
                type $B = burn::backend::Autodiff<burn_ndarray::NdArray<f32>>;
                let $device = burn_ndarray::NdArrayDevice::default();
                let _ = $index;
                $body
            }
            #[cfg(feature = "flex")]
            $crate::backend::BackendChoice::Flex => {
                type $B = burn::backend::Autodiff<burn_flex::Flex>;
                let $device = burn_flex::FlexDevice::default();
                let _ = $index;
                $body
            }
            #[cfg(feature = "wgpu")]
            $crate::backend::BackendChoice::Wgpu => {
                type $B = burn::backend::Autodiff<burn_wgpu::Wgpu<f32, i32, u32>>;
                // Index 0 is whatever adapter the system prefers, a software one included.
                let $device = match $index {
                    0 => burn_wgpu::WgpuDevice::DefaultDevice,
                    n => burn_wgpu::WgpuDevice::DiscreteGpu(n - 1),
                };
                $body
            }
            #[cfg(feature = "cuda")]
            $crate::backend::BackendChoice::Cuda => {
                type $B = burn::backend::Autodiff<burn_cuda::Cuda<f32, i32>>;
                let $device = burn_cuda::CudaDevice::new($index);
                $body
            }
        }
    };
}
