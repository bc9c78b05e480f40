//! What can go wrong on the device.

use thiserror::Error;

/// A failed call. It is noticed on the thread that talks to the device, after the call of the operation has
/// returned; the next operation panics with it.
#[derive(Debug, Error)]
pub(super) enum CudaError {
    /// The driver refused a call.
    #[error("CUDA driver: {call} failed with {code}")]
    Driver { call: &'static str, code: String },
    /// cuBLASLt refused a call.
    #[error("cuBLASLt: {call} failed with {code} for {product}")]
    Blas { call: &'static str, code: String, product: String },
    /// NVRTC could not compile a kernel.
    #[error("NVRTC cannot compile {kernel} for {arch}: {log}")]
    Compile { kernel: String, arch: String, log: String },
    /// A job panicked.
    #[error("panic on the device's thread: {0}")]
    Panic(String),
    /// A tensor has no memory.
    #[error("an operand has no memory: {0}")]
    Memory(String),
    /// An earlier request for memory failed; CubeCL says so only when the memory is used.
    #[error("out of memory: {free_gib:.1} of {total_gib:.1} GiB were free when it was noticed")]
    OutOfMemory { free_gib: f64, total_gib: f64 },
}
