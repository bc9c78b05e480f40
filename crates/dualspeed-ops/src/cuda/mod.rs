//! The fast bodies for CUDA: products through cuBLASLt, kernels of our own through NVRTC, on Burn's own memory and in
//! its order.
//!
//! | module | content |
//! |---|---|
//! | `error`, `driver`, `ready` | failed calls, questions to the driver, whether a device is served |
//! | `element`, `product`, `sources` | element types, matrix products, the list of `kernels/*.cu` |
//! | `cache` | what was compiled and measured before |
//! | `kernel`, `blas`, `staging` | compiled kernels, cuBLASLt, page-locked memory: what a device has |
//! | `gpu` | all of that for one device |
//! | `queue` | work on CubeCL's server thread, ordered with Burn's launches |
//! | `tensor`, `cast`, `transfer` | strides and rows, other element types, copies from and to the host |
//! | `linear`, `dropout`, `attention`, `elementwise`, `losses`, `select`, `points`, `adamw` | the operations |
//! | `backend` | all of them as the [`Backend`](crate::Backend) of [`Cuda`] |
//!
//! A module imports from its own row and the rows above it.
//!
//! A body that does not serve its operands (f64, empty tensors, odd types) leaves them to the plain one. So does the
//! whole module, with one warning, where the driver is older than CUDA 12.5, a library is missing or the device is older
//! than compute capability 8.0; `DUALSPEED_PLAIN=1` in the environment asks for that.

mod adamw;
mod attention;
mod backend;
mod blas;
mod cache;
mod cast;
mod driver;
mod dropout;
mod element;
mod elementwise;
mod error;
mod gpu;
mod kernel;
mod linear;
mod losses;
mod points;
mod product;
mod queue;
mod ready;
mod select;
mod sources;
mod staging;
mod tensor;
mod transfer;

pub use blas::allow_tf32;
pub use burn_cuda::{Cuda, CudaDevice};
pub use driver::device_count;
pub use queue::take_failure;
pub use ready::is_fast;
