//! The operations: formulas against finite differences, fast paths against plain ones, per enabled backend.

mod attention;
mod block;
mod finite_differences;
mod host;
mod losses;
mod parity;
mod points;
mod support;

/// Instantiates the bodies of a module for every enabled backend.
macro_rules! per_backend {
    ($($test:ident),+ $(,)?) => {
        #[cfg(feature = "ndarray")]
        mod ndarray {
            $(#[test] fn $test() { super::$test::<burn_ndarray::NdArray<f32>>(3) })+
        }
        #[cfg(feature = "flex")]
        mod flex {
            $(#[test] fn $test() { super::$test::<burn_flex::Flex>(3) })+
        }
        // On a software renderer only the first, smallest case is affordable.
        #[cfg(feature = "wgpu")]
        mod wgpu {
            $(#[test] fn $test() { super::$test::<burn_wgpu::Wgpu<f32, i32, u32>>(1) })+
        }
    };
}
use per_backend;
