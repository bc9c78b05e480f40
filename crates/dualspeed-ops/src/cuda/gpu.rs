//! What is kept per device: our stream, the libraries, the kernels.
#![allow(unsafe_code)]

use std::ptr::null_mut;

use cudarc::driver::sys as driver;

use super::blas::Blas;
use super::driver::{attribute, check};
use super::error::CudaError;
use super::kernel::{Arg, Grid, Kernels};
use super::product::{Operands, Product};
use super::sources::{self, Source};
use super::staging::Staging;

/// What is kept per device, on its server thread.
pub(super) struct Gpu {
    context: driver::CUcontext,
    pub(super) stream: driver::CUstream,
    /// Everything launched before us.
    before: driver::CUevent,
    /// Everything we launched.
    after: driver::CUevent,
    blas: Blas,
    pub(super) kernels: Kernels,
    pub(super) multiprocessors: usize,
    /// Host buffers for uploads.
    pub(super) staging: Staging,
}

impl Gpu {
    pub(super) fn new(index: usize) -> Result<Self, CudaError> {
        let (mut context, mut stream) = (null_mut(), null_mut());
        let (mut before, mut after) = (null_mut(), null_mut());
        // SAFETY: the context of the device is current on its server thread; the pointers are to locals.
        unsafe {
            check("cuCtxGetCurrent", driver::cuCtxGetCurrent(&mut context))?;
            let flags = driver::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
            check("cuStreamCreate", driver::cuStreamCreate(&mut stream, flags))?;
            let flags = driver::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            check("cuEventCreate", driver::cuEventCreate(&mut before, flags))?;
            check("cuEventCreate", driver::cuEventCreate(&mut after, flags))?;
        }
        type A = driver::CUdevice_attribute;
        let count = attribute(index, A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let mut kernels = Kernels::new(index)?;
        kernels.compile_ahead(sources::of_a_step(kernels.arch()));
        let name = format!("{} {count}", kernels.arch());
        let (blas, multiprocessors) = (Blas::new(name)?, count as usize);
        let staging = Staging::default();
        Ok(Self { context, stream, before, after, blas, kernels, multiprocessors, staging })
    }

    /// Address of the context, for threads that wait for its events.
    pub(super) fn context(&self) -> usize {
        self.context as usize
    }

    /// Runs `job` between what was launched before on the whole device and what will be launched after.
    pub(super) fn in_order(
        &mut self,
        job: impl FnOnce(&mut Self) -> Result<(), CudaError>,
    ) -> Result<(), CudaError> {
        // SAFETY: stream and events belong to this context, which is current.
        unsafe {
            check("cuCtxRecordEvent", driver::cuCtxRecordEvent(self.context, self.before))?;
            check("cuStreamWaitEvent", driver::cuStreamWaitEvent(self.stream, self.before, 0))?;
        }
        // Also after a failure: what was queued before it must still be ordered.
        let result = job(self);
        // SAFETY: as above.
        unsafe {
            check("cuEventRecord", driver::cuEventRecord(self.after, self.stream))?;
            check("cuCtxWaitEvent", driver::cuCtxWaitEvent(self.context, self.after))?;
        }
        result
    }

    /// Copies from the host; the bytes have been read when this returns.
    pub(super) fn upload(&mut self, address: u64, bytes: &[u8]) -> Result<(), CudaError> {
        let from = bytes.as_ptr().cast();
        // SAFETY: the caller's operand holds `bytes.len()` bytes at `address`; pageable memory is staged before return.
        let code = unsafe { driver::cuMemcpyHtoDAsync_v2(address, from, bytes.len(), self.stream) };
        check("cuMemcpyHtoDAsync", code)
    }

    /// Queues one kernel; `defines` are options of the compiler, separated by blanks.
    pub(super) fn launch(
        &mut self,
        source: &Source,
        defines: &str,
        name: &str,
        grid: Grid,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        self.kernels.launch(source, defines, name, grid, args, self.stream)
    }

    /// Queues one product; `beta` 0 means that `C` is not read.
    pub(super) fn product(
        &mut self,
        product: Product,
        operands: Operands,
        alpha: f32,
        beta: f32,
    ) -> Result<(), CudaError> {
        self.blas.product(product, operands, alpha, beta, self.stream)
    }
}
