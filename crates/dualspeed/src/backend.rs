//! The backends compiled in (feature flags) and the choice among them.

use burn::backend::Autodiff;
use clap::ValueEnum;
use dualspeed_ops::AutodiffBackend;

#[cfg(not(any(feature = "ndarray", feature = "flex", feature = "wgpu", feature = "cuda")))]
compile_error!("dualspeed needs at least one backend feature: ndarray, flex, wgpu or cuda");

/// The name of a backend; only those compiled in exist.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// An NVIDIA GPU where there is one, else the fastest of the others that are compiled in.
    #[default]
    Auto,
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

impl BackendChoice {
    /// The backend that this stands for, by preference: cuda if the driver finds device number `index`, wgpu, flex, ndarray, and
    /// cuda without a device if nothing else is compiled in.
    pub fn resolve(self, index: usize) -> Self {
        #[cfg(not(feature = "cuda"))]
        let _ = index;
        match self {
            Self::Auto => {
                #[allow(unreachable_code)]
                {
                    #[cfg(feature = "cuda")]
                    if dualspeed_ops::cuda::device_count() > index {
                        return Self::Cuda;
                    }
                    #[cfg(feature = "wgpu")]
                    return Self::Wgpu;
                    #[cfg(feature = "flex")]
                    return Self::Flex;
                    #[cfg(feature = "ndarray")]
                    return Self::Ndarray;
                    #[cfg(feature = "cuda")]
                    return Self::Cuda;
                }
            }
            named => named,
        }
    }

    /// The backends that are compiled in.
    pub fn compiled_in() -> impl Iterator<Item = Self> {
        Self::value_variants().iter().copied().filter(|choice| *choice != Self::Auto)
    }

    /// The name on the command line.
    pub fn name(self) -> String {
        self.to_possible_value().map(|v| v.get_name().to_string()).unwrap_or_default()
    }
}

/// Work that is generic over the backend, to be run on the one chosen at run time.
pub trait BackendTask {
    /// The result of the work.
    type Output;

    /// Runs the work on a device of the backend `B`.
    fn run<B: AutodiffBackend>(self, device: &B::Device) -> Self::Output;
}

impl BackendChoice {
    /// Runs `task` on this backend's device number `index`; CPU backends have one device.
    ///
    /// For wgpu, 0 is whatever adapter the system prefers, a software one included, and n the n-th
    /// discrete GPU.
    pub fn run<T: BackendTask>(self, index: usize, task: T) -> T::Output {
        match self.resolve(index) {
            Self::Auto => unreachable!("a backend stands for itself"),
            #[cfg(feature = "ndarray")]
            Self::Ndarray => {
                let _ = index;
                task.run::<Autodiff<burn_ndarray::NdArray<f32>>>(&Default::default())
            }
            #[cfg(feature = "flex")]
            Self::Flex => {
                let _ = index;
                task.run::<Autodiff<burn_flex::Flex>>(&Default::default())
            }
            #[cfg(feature = "wgpu")]
            Self::Wgpu => task.run::<Autodiff<burn_wgpu::Wgpu<f32, i32, u32>>>(&match index {
                0 => burn_wgpu::WgpuDevice::DefaultDevice,
                n => burn_wgpu::WgpuDevice::DiscreteGpu(n - 1),
            }),
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                task.run::<Autodiff<burn_cuda::Cuda<f32, i32>>>(&burn_cuda::CudaDevice::new(index))
            }
        }
    }
}
