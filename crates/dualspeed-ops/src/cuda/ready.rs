//! Whether a device and its driver have what the fast bodies need.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use burn_cuda::CudaDevice;
use cudarc::driver::sys as driver;
use cudarc::{cublaslt, nvrtc};

use super::driver::{attribute, compute_capability};

/// First driver with events of a whole context.
const DRIVER: i32 = 12_050;

static DEVICES: Mutex<BTreeMap<usize, bool>> = Mutex::new(BTreeMap::new());

static SHARED_MEMORY: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// Bytes of shared memory that a block of threads can have; 0 if that cannot be told.
pub(super) fn shared_memory(device: &CudaDevice) -> usize {
    let what = driver::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
    let mut devices = SHARED_MEMORY.lock().unwrap_or_else(PoisonError::into_inner);
    *devices
        .entry(device.index)
        .or_insert_with(|| attribute(device.index, what).map_or(0, |bytes| bytes.max(0) as usize))
}

/// Whether the operations on `device` take the fast bodies. What is missing is said once, as a warning.
pub fn is_fast(device: &CudaDevice) -> bool {
    let mut devices = DEVICES.lock().unwrap_or_else(PoisonError::into_inner);
    *devices.entry(device.index).or_insert_with(|| match missing(device.index) {
        None => true,
        Some(missing) => {
            tracing::warn!(
                "CUDA device {}: {missing}; the operations run on Burn's own kernels, several \
                times slower",
                device.index
            );
            false
        }
    })
}

fn missing(device: usize) -> Option<String> {
    if std::env::var_os("DUALSPEED_PLAIN").is_some_and(|value| value != "0") {
        return Some("DUALSPEED_PLAIN is set".into());
    }
    // SAFETY: these look for libraries and load nothing else.
    let (cuda, blas, compiler) = unsafe {
        (
            driver::is_culib_present(),
            cublaslt::sys::is_culib_present(),
            nvrtc::sys::is_culib_present(),
        )
    };
    for (present, library) in [(cuda, "libcuda"), (blas, "libcublasLt"), (compiler, "libnvrtc")] {
        if !present {
            return Some(format!("{library} is not in the library path"));
        }
    }
    let mut version = 0;
    // SAFETY: the pointer is to a local.
    unsafe { driver::cuDriverGetVersion(&mut version) };
    if version < DRIVER {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Some(format!("the driver serves CUDA {major}.{minor}, 12.5 is needed"));
    }
    match compute_capability(device) {
        Ok((major, _)) if major >= 8 => None,
        Ok((major, minor)) => Some(format!("compute capability {major}.{minor}, 8.0 is needed")),
        Err(error) => Some(error.to_string()),
    }
}
