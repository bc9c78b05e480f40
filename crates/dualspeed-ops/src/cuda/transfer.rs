//! Copies from and to the host through page-locked memory.
#![allow(unsafe_code)]

use std::sync::mpsc::channel;

use burn::tensor::{DType, Shape};
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cuda::CudaDevice;
use cubecl::Runtime;
use cubecl::cuda::CudaRuntime;
use cudarc::driver::sys as driver;
use rayon::prelude::*;

use super::driver::check;
use super::element::Tensor;
use super::gpu::Gpu;
use super::queue::{ask, failed_since, flush, submit, take_failure, tell};
use super::ready::is_fast;
use super::tensor::contiguous;
use crate::types::ReadLater;

/// A piece that one thread copies.
const PIECE: usize = 1 << 20;

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
            check("cuEventRecord", driver::cuEventRecord(buffer.done as _, gpu.stream))?;
        }
        gpu.staging.put(buffer);
        Ok(())
    });
    Some(out)
}

/// See [`Backend::read_later`](crate::Backend::read_later); `None` where it does not serve.
pub(super) fn read_later(tensor: &Tensor) -> Option<ReadLater> {
    let (count, device) = (tensor.meta.shape().num_elements(), tensor.device.clone());
    if !is_fast(&device) || count == 0 || tensor.dtype != DType::F32 {
        return None;
    }
    let bytes = 4 * count;
    let tensor = contiguous(tensor.clone());
    let buffer = ask(&device, move |gpu| gpu.staging.take(bytes)).ok()?;
    let (sender, receiver) = channel();
    let failed = failed_since();
    submit([Some(&tensor)], move |gpu: &mut Gpu, [from]| {
        if failed() {
            // Without the sender, who waits gets an error.
            return Ok(());
        }
        // SAFETY: buffer and tensor have `bytes` bytes; the buffer is not read before the event has passed.
        unsafe {
            let to = buffer.address as *mut _;
            let code = driver::cuMemcpyDtoHAsync_v2(to, from, bytes, gpu.stream);
            check("cuMemcpyDtoHAsync", code)?;
            check("cuEventRecord", driver::cuEventRecord(buffer.done as _, gpu.stream))?;
        }
        // Nobody waits for it any more: the buffer frees itself.
        let _ = sender.send((buffer, gpu.context()));
        Ok(())
    });
    flush();
    Some(Box::new(move || {
        let (buffer, context) = receiver.recv().map_err(|_| {
            take_failure().unwrap_or_else(|| "an operation before it failed".to_owned())
        })?;
        // SAFETY: the context lives as long as the process; the event was recorded before it was sent here.
        let waited = unsafe {
            driver::cuCtxSetCurrent(context as _);
            check("cuEventSynchronize", driver::cuEventSynchronize(buffer.done as _))
        };
        waited.map_err(|error| error.to_string())?;
        // SAFETY: the copy is over, and page-locked memory is aligned to pages.
        let values = unsafe { std::slice::from_raw_parts(buffer.address as *const f32, count) };
        let values = values.to_vec();
        tell(&device, move |gpu| gpu.staging.put(buffer));
        Ok(values)
    }))
}
