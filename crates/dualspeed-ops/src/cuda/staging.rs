//! Uploads through page-locked host memory that is kept: page-locking, and touching fresh pages, takes longer than the copy.
#![allow(unsafe_code)]

use std::ptr::null_mut;

use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cuda::CudaDevice;
use cubecl::Runtime;
use cubecl::cuda::CudaRuntime;
use cudarc::driver::sys as driver;
use rayon::prelude::*;

use super::error::CudaError;
use super::gpu::{Gpu, ask, check, submit};
use super::ready::is_fast;
use super::tensor::Tensor;

/// Buffers that are kept at most.
const KEPT: usize = 4;
/// A piece that one thread copies.
const PIECE: usize = 1 << 20;

/// Page-locked host memory.
pub(super) struct Buffer {
    address: usize,
    bytes: usize,
    /// Recorded after the last copy out of it.
    read: usize,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: both are ours and nobody else has them. The driver waits for copies that still read the memory.
        unsafe {
            driver::cuMemFreeHost(self.address as *mut _);
            driver::cuEventDestroy_v2(self.read as driver::CUevent);
        }
    }
}

/// The buffers of a device.
#[derive(Default)]
pub(super) struct Staging(Vec<Buffer>);

impl Staging {
    /// A buffer of at least `bytes` that no copy reads any more.
    fn take(&mut self, bytes: usize) -> Result<Buffer, CudaError> {
        let idle = |buffer: &Buffer| {
            // SAFETY: the event lives as long as the buffer.
            let code = unsafe { driver::cuEventQuery(buffer.read as driver::CUevent) };
            code == driver::CUresult::CUDA_SUCCESS
        };
        let found = (0..self.0.len())
            .filter(|index| self.0[*index].bytes >= bytes && idle(&self.0[*index]))
            .min_by_key(|index| self.0[*index].bytes);
        if let Some(index) = found {
            return Ok(self.0.swap_remove(index));
        }
        let bytes = bytes.next_power_of_two().max(1 << 20);
        let (mut memory, mut read) = (null_mut(), null_mut());
        // SAFETY: the pointers are to locals.
        unsafe {
            let flags = driver::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
            check("cuEventCreate", driver::cuEventCreate(&mut read, flags))?;
            check("cuMemHostAlloc", driver::cuMemHostAlloc(&mut memory, bytes, 0))?;
        }
        Ok(Buffer { address: memory as usize, bytes, read: read as usize })
    }

    /// Keeps a buffer for later; the smallest goes when there are too many.
    fn put(&mut self, buffer: Buffer) {
        self.0.push(buffer);
        if self.0.len() > KEPT {
            self.0.sort_by_key(|buffer| buffer.bytes);
            self.0.remove(0);
        }
    }
}

/// See [`Backend::upload`](crate::Backend::upload); `None` where it does not serve.
pub(super) fn upload(
    parts: &[&[u8]],
    shape: &Shape,
    dtype: DType,
    device: &CudaDevice,
) -> Option<Tensor> {
    let bytes: usize = parts.iter().map(|part| part.len()).sum();
    if !is_fast(device) || bytes == 0 || bytes != shape.num_elements() * dtype.size() {
        return None;
    }
    let buffer = match ask(device, move |gpu| gpu.staging.take(bytes)) {
        Ok(buffer) => buffer,
        Err(error) => {
            tracing::debug!("no page-locked memory, uploading without: {error}");
            return None;
        }
    };
    // SAFETY: the buffer is at least this long, and no copy reads it any more.
    let memory = unsafe { std::slice::from_raw_parts_mut(buffer.address as *mut u8, bytes) };
    let mut rest = memory;
    let mut pieces = Vec::new();
    for part in parts {
        let (target, behind) = std::mem::take(&mut rest).split_at_mut(part.len());
        rest = behind;
        pieces.extend(target.chunks_mut(PIECE).zip(part.chunks(PIECE)));
    }
    pieces.into_par_iter().for_each(|(target, piece)| target.copy_from_slice(piece));
    let client = CudaRuntime::client(device);
    let out = empty_device_contiguous_dtype(client, device.clone(), shape.clone(), dtype);
    submit([Some(&out)], move |gpu: &mut Gpu, [to]| {
        // SAFETY: buffer and tensor have `bytes` bytes; the buffer is not written before the event has passed.
        unsafe {
            let from = buffer.address as *const _;
            let code = driver::cuMemcpyHtoDAsync_v2(to, from, bytes, gpu.stream);
            check("cuMemcpyHtoDAsync", code)?;
            check("cuEventRecord", driver::cuEventRecord(buffer.read as _, gpu.stream))?;
        }
        gpu.staging.put(buffer);
        Ok(())
    });
    Some(out)
}
