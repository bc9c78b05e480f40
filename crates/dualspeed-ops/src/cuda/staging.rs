//! Page-locked host memory that is kept: page-locking, and touching fresh pages, takes longer than a copy.
#![allow(unsafe_code)]

use std::ptr::null_mut;

use cudarc::driver::sys as driver;

use super::driver::check;
use super::error::CudaError;

/// Buffers that are kept at most.
const KEPT: usize = 4;

/// Page-locked host memory.
pub(super) struct Buffer {
    pub(super) address: usize,
    bytes: usize,
    /// The event that is recorded after the last copy from or to it.
    pub(super) done: usize,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: both are ours and nobody else has them. The driver waits for copies that still read the memory.
        unsafe {
            driver::cuMemFreeHost(self.address as *mut _);
            driver::cuEventDestroy_v2(self.done as driver::CUevent);
        }
    }
}

/// The host buffers of a device.
#[derive(Default)]
pub(super) struct Staging(Vec<Buffer>);

impl Staging {
    /// A buffer of at least `bytes` that no copy uses any more.
    pub(super) fn take(&mut self, bytes: usize) -> Result<Buffer, CudaError> {
        let idle = |buffer: &Buffer| {
            // SAFETY: the event lives as long as the buffer.
            let code = unsafe { driver::cuEventQuery(buffer.done as driver::CUevent) };
            code == driver::CUresult::CUDA_SUCCESS
        };
        let found = (0..self.0.len())
            .filter(|index| self.0[*index].bytes >= bytes && idle(&self.0[*index]))
            .min_by_key(|index| self.0[*index].bytes);
        if let Some(index) = found {
            return Ok(self.0.swap_remove(index));
        }
        let bytes = bytes.next_power_of_two().max(1 << 20);
        let (mut memory, mut done) = (null_mut(), null_mut());
        // SAFETY: the pointers are to locals.
        unsafe {
            let flags = driver::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            check("cuEventCreate", driver::cuEventCreate(&mut done, flags))?;
            check("cuMemHostAlloc", driver::cuMemHostAlloc(&mut memory, bytes, 0))?;
        }
        Ok(Buffer { address: memory as usize, bytes, done: done as usize })
    }

    /// Keeps a buffer for later; the smallest goes when there are too many.
    pub(super) fn put(&mut self, buffer: Buffer) {
        self.0.push(buffer);
        if self.0.len() > KEPT {
            self.0.sort_by_key(|buffer| buffer.bytes);
            self.0.remove(0);
        }
    }
}
