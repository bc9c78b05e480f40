//! Work of our own on Burn's memory, in Burn's order.
//!
//! [`submit`] runs a closure on the thread that CubeCL talks to the device from, between the launches before and after
//! it. CubeCL's streams are private, so the order on the device comes from two events of the whole context: our stream
//! waits for everything launched before, and everything launched after waits for our stream. The host never waits.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use burn_cuda::CudaDevice;
use cubecl::Runtime;
use cubecl::cuda::CudaRuntime;
use cubecl::device::Device;
use cubecl::device_handle::DeviceHandle;
use cubecl::server::{Binding, ComputeServer};
use cubecl::stream_id::StreamId;

use super::driver::memory_info;
use super::element::Tensor;
use super::error::CudaError;
use super::gpu::Gpu;
use crate::types::DeviceMemory;

type Server = <CudaRuntime as Runtime>::Server;

thread_local! {
    static GPUS: RefCell<HashMap<usize, Gpu>> = RefCell::new(HashMap::new());
}

/// The first failure on a server thread, until an operation reports it.
static FAILURE: Mutex<Option<CudaError>> = Mutex::new(None);

/// Failures so far, and those of them that [`reported`] has handed out or passed over.
static FAILURES: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// See [`DeviceMemory`].
pub(super) fn memory(device: &CudaDevice) -> Option<DeviceMemory> {
    flush();
    // Of the caller's stream: the server's thread has another.
    let stream = StreamId::current();
    let memory = DeviceHandle::<Server>::new(device.to_id()).submit_blocking(move |server| {
        // A server call makes the context current.
        let usage = server.memory_usage(stream).ok()?;
        let [free, total] = memory_info()?;
        // Memory that CubeCL holds but does not use serves the next tensors.
        let spare = usage.bytes_reserved.saturating_sub(usage.bytes_in_use);
        Some(DeviceMemory { free: free as u64 + spare, taken: (total - free) as u64 })
    });
    memory.ok().flatten()
}

/// The first failure on the device's thread that no operation has reported yet. Calls return before their work is done: a
/// training loop asks once a step.
pub fn take_failure() -> Option<String> {
    reported().map(|error| error.to_string())
}

fn reported() -> Option<CudaError> {
    let mut failure = FAILURE.lock().unwrap_or_else(PoisonError::into_inner);
    let [all, known] = &FAILURES;
    known.store(all.load(Ordering::SeqCst), Ordering::SeqCst);
    failure.take()
}

fn failed(error: CudaError) {
    let mut failure = FAILURE.lock().unwrap_or_else(PoisonError::into_inner);
    FAILURES[0].fetch_add(1, Ordering::SeqCst);
    failure.get_or_insert(error);
}

/// Says, on the device's thread, whether an operation queued before has failed that the host did not know of when this was
/// made: what is read then may be garbage. The host may have reported it since.
pub(super) fn failed_since() -> impl Fn() -> bool + Send + 'static {
    let known = FAILURES[1].load(Ordering::SeqCst);
    move || FAILURES[0].load(Ordering::SeqCst) > known
}

/// Runs `job` on the server thread of the operands' device with their addresses (0 for `None`). The operands live until
/// the job has queued its work.
///
/// # Panics
/// When an earlier job failed: its result is garbage, and nothing else can tell.
pub(super) fn submit<const N: usize>(
    operands: [Option<&Tensor>; N],
    job: impl FnOnce(&mut Gpu, [u64; N]) -> Result<(), CudaError> + Send + 'static,
) {
    let present: Vec<&Tensor> = operands.iter().flatten().copied().collect();
    let is_present = operands.map(|operand| operand.is_some());
    submit_all(&present, move |gpu, addresses| {
        let mut addresses = addresses.iter();
        let mut next = |present| if present { addresses.next().copied().unwrap_or(0) } else { 0 };
        job(gpu, is_present.map(&mut next))
    });
}

/// [`submit`] for any number of operands.
pub(super) fn submit_all(
    operands: &[&Tensor],
    job: impl FnOnce(&mut Gpu, &[u64]) -> Result<(), CudaError> + Send + 'static,
) {
    let Some(device) = operands.first().map(|operand| operand.device.clone()) else { return };
    // Bindings keep the memory without making it look shared to Burn's in-place operations.
    let bytes = |tensor: &&Tensor| tensor.meta.shape().num_elements() * tensor.dtype.size();
    let size: usize = operands.iter().map(bytes).sum();
    let operands = operands.iter().map(|operand| operand.handle.clone().binding()).collect();
    let work = Work { operands, job: Box::new(job) };
    let elsewhere = BATCH.with_borrow(|batch| batch.device.as_ref().is_some_and(|d| *d != device));
    if elsewhere {
        flush();
    }
    let now = BATCH.with_borrow_mut(|batch| {
        if batch.depth == 0 {
            return Some(work);
        }
        batch.device = Some(device.clone());
        batch.work.push(work);
        batch.bytes += size;
        None
    });
    match now {
        Some(work) => send(&device, vec![work]),
        None if BATCH.with_borrow(|batch| batch.bytes > HELD) => flush(),
        None => {}
    }
}

/// A job and the memory it works on.
struct Work {
    operands: Vec<Binding>,
    job: Box<dyn FnOnce(&mut Gpu, &[u64]) -> Result<(), CudaError> + Send>,
}

/// Jobs of this thread that wait to be sent together.
#[derive(Default)]
struct Batch {
    depth: usize,
    device: Option<CudaDevice>,
    work: Vec<Work>,
    /// Of all operands, those of several jobs as often as they occur.
    bytes: usize,
}

/// Bytes of operands from which jobs wait no longer: until they are sent, nothing that they read is free for the tensors that follow.
const HELD: usize = 256 << 20;

thread_local! {
    static BATCH: RefCell<Batch> = RefCell::default();
}

/// Sends the jobs of `f` as one: they follow each other on our stream without a detour through CubeCL's. Whoever launches
/// one of Burn's own kernels on the way calls [`flush`] first.
pub(super) fn batched<R>(f: impl FnOnce() -> R) -> R {
    /// Sends what is there, after a panic too.
    struct Guard;

    impl Drop for Guard {
        fn drop(&mut self) {
            let outermost = BATCH.with_borrow_mut(|batch| {
                batch.depth -= 1;
                batch.depth == 0
            });
            if outermost && !std::thread::panicking() {
                flush();
            }
        }
    }

    BATCH.with_borrow_mut(|batch| batch.depth += 1);
    let _guard = Guard;
    f()
}

/// Sends the jobs that wait.
pub(super) fn flush() {
    let (device, work) = BATCH.with_borrow_mut(|batch| {
        batch.bytes = 0;
        (batch.device.take(), std::mem::take(&mut batch.work))
    });
    if let Some(device) = device {
        send(&device, work);
    }
}

fn send(device: &CudaDevice, work: Vec<Work>) {
    if let Some(error) = reported() {
        panic!("an earlier operation failed: {error}");
    }
    let (index, stream) = (device.index, StreamId::current());
    DeviceHandle::<Server>::new(device.to_id()).submit(move |server| {
        let run = AssertUnwindSafe(|| run(server, index, stream, work));
        // CubeCL would log a panic and go on as if the work had been done.
        let result = catch_unwind(run).unwrap_or_else(|panic| {
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(CudaError::Panic(message.unwrap_or("no message").to_string()))
        });
        if let Err(error) = result {
            failed(explained(error));
        }
    });
}

/// Names what is behind an operand without memory. For the device's thread.
fn explained(error: CudaError) -> CudaError {
    let (CudaError::Memory(message) | CudaError::Panic(message)) = &error else { return error };
    if !message.contains("find resource") && !message.contains("Memory page") {
        return error;
    }
    let gib = |bytes: usize| bytes as f64 / (1u64 << 30) as f64;
    match memory_info() {
        Some([free, total]) => {
            CudaError::OutOfMemory { free_gib: gib(free), total_gib: gib(total) }
        }
        None => error,
    }
}

/// Runs `job` on the server thread and waits for what it returns: for things that have no operands.
pub(super) fn ask<R: Send + 'static>(
    device: &CudaDevice,
    job: impl FnOnce(&mut Gpu) -> Result<R, CudaError> + Send + 'static,
) -> Result<R, CudaError> {
    flush();
    let index = device.index;
    let answer = DeviceHandle::<Server>::new(device.to_id()).submit_blocking(move |server| {
        // A server call makes the context current.
        let usage = server.memory_usage(StreamId::current());
        usage.map_err(|error| CudaError::Memory(format!("{error:?}")))?;
        with_gpu(index, job)
    });
    answer.map_err(|error| CudaError::Memory(format!("{error:?}")))?
}

/// Runs `job` on the server thread some time.
pub(super) fn tell(device: &CudaDevice, job: impl FnOnce(&mut Gpu) + Send + 'static) {
    let index = device.index;
    DeviceHandle::<Server>::new(device.to_id()).submit(move |_| {
        // Where there is no state yet, nothing can want it.
        let _ = with_gpu(index, |gpu| {
            job(gpu);
            Ok(())
        });
    });
}

fn with_gpu<R>(
    index: usize,
    job: impl FnOnce(&mut Gpu) -> Result<R, CudaError>,
) -> Result<R, CudaError> {
    GPUS.with_borrow_mut(|gpus| {
        let gpu = match gpus.entry(index) {
            Entry::Occupied(slot) => slot.into_mut(),
            Entry::Vacant(slot) => slot.insert(Gpu::new(index)?),
        };
        job(gpu)
    })
}

fn run(
    server: &mut Server,
    index: usize,
    stream: StreamId,
    work: Vec<Work>,
) -> Result<(), CudaError> {
    // Keeps the memory from being given to somebody else before our launches are queued.
    let mut resources = Vec::new();
    let mut jobs = Vec::with_capacity(work.len());
    for Work { operands, job } in work {
        let mut addresses = Vec::with_capacity(operands.len());
        for operand in operands {
            let resource = server
                .get_resource(operand, stream)
                .map_err(|error| CudaError::Memory(format!("{error:?}")))?;
            addresses.push(resource.resource().ptr);
            resources.push(resource);
        }
        jobs.push((addresses, job));
    }
    with_gpu(index, |gpu| {
        gpu.in_order(|gpu| jobs.into_iter().try_for_each(|(addresses, job)| job(gpu, &addresses)))
    })
}
