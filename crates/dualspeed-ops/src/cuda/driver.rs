//! Questions to the driver, and its answers as results.
#![allow(unsafe_code)]

use cudarc::driver::sys as driver;

use super::error::CudaError;

/// Turns a status of the driver into a result.
pub(super) fn check(call: &'static str, code: driver::CUresult) -> Result<(), CudaError> {
    match code {
        driver::CUresult::CUDA_SUCCESS => Ok(()),
        code => Err(CudaError::Driver { call, code: format!("{code:?}") }),
    }
}

/// An attribute of a device; no context is needed.
pub(super) fn attribute(device: usize, what: driver::CUdevice_attribute) -> Result<i32, CudaError> {
    let (mut handle, mut value) = (0, 0);
    // SAFETY: the pointers are to locals; `cuInit` may be called any number of times.
    unsafe {
        check("cuInit", driver::cuInit(0))?;
        check("cuDeviceGet", driver::cuDeviceGet(&mut handle, device as i32))?;
        check("cuDeviceGetAttribute", driver::cuDeviceGetAttribute(&mut value, what, handle))?;
    }
    Ok(value)
}

/// NVIDIA GPUs that the driver finds; 0 where there is no driver.
pub fn device_count() -> usize {
    let mut count = 0;
    // SAFETY: the library is looked for before it is called; the pointer is to a local.
    let counted = unsafe {
        driver::is_culib_present()
            && check("cuInit", driver::cuInit(0)).is_ok()
            && check("cuDeviceGetCount", driver::cuDeviceGetCount(&mut count)).is_ok()
    };
    if counted { usize::try_from(count).unwrap_or(0) } else { 0 }
}

/// Major and minor compute capability of a device.
pub(super) fn compute_capability(device: usize) -> Result<(i32, i32), CudaError> {
    type A = driver::CUdevice_attribute;
    let major = attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, attribute(device, A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}

/// Free and total bytes of the device whose context is current.
pub(super) fn memory_info() -> Option<[usize; 2]> {
    let (mut free, mut total) = (0, 0);
    // SAFETY: the pointers are to locals.
    let code = unsafe { driver::cuMemGetInfo_v2(&mut free, &mut total) };
    check("cuMemGetInfo", code).ok()?;
    Some([free, total])
}
