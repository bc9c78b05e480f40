//! The algorithm of a product, chosen by measuring.
#![allow(unsafe_code)]

use cudarc::cublaslt::sys;
use cudarc::driver::sys as driver;

use super::{Blas, Conditions, Plan};
use crate::cuda::cache::{cache_file, digest, write_cache};
use crate::cuda::driver::check;
use crate::cuda::error::CudaError;
use crate::cuda::product::{Operands, Product};

/// Times that each is measured.
const ROUNDS: usize = 5;

/// What is measured at a time is at least so long.
const ENOUGH_MS: f32 = 0.2;

/// Times the fastest of the first round: those that took longer are not measured again.
const HOPEFUL: f32 = 1.15;

/// An algorithm has to be this much faster than the library's first choice.
const WORTH: f32 = 0.97;

impl Blas {
    /// The fastest of `algorithms`, from the disk where it was measured before: a run that is resumed computes what the run
    /// before it did. The library's guess is off where the last wave of tiles is nearly empty.
    pub(super) fn chosen(
        &self,
        product: &Product,
        conditions: &Conditions,
        plan: &Plan,
        algorithms: &[sys::cublasLtMatmulAlgo_t],
        operands: &Operands,
        stream: driver::CUstream,
    ) -> sys::cublasLtMatmulAlgo_t {
        // SAFETY: the function takes nothing and returns a number.
        let version = unsafe { sys::cublasLtGetVersion() }.to_string();
        let digest = digest(&[&self.device, &version, &format!("{product:?} {conditions:?}")]);
        let file = cache_file(&format!("product-{digest}.algorithm"));
        let known = file.as_ref().and_then(|file| std::fs::read(file).ok());
        let known = known.and_then(|bytes| <[u8; 64]>::try_from(bytes).ok()).map(|bytes| {
            let word = |i: usize| std::array::from_fn(|j| bytes[8 * i + j]);
            sys::cublasLtMatmulAlgo_t { data: std::array::from_fn(|i| u64::from_le_bytes(word(i))) }
        });
        // Only what the library offers is trusted.
        if let Some(known) = known.filter(|known| algorithms.contains(known)) {
            return known;
        }
        let fastest = match self.measured(product, conditions, plan, algorithms, operands, stream) {
            Ok(fastest) => fastest,
            Err(error) => {
                tracing::debug!("the first algorithm is taken unmeasured: {error}");
                return plan.algorithm;
            }
        };
        if let Some(file) = file {
            let bytes: Vec<u8> = fastest.data.iter().flat_map(|word| word.to_le_bytes()).collect();
            write_cache(&file, &bytes);
        }
        fastest
    }

    /// Runs each algorithm a few times on the operands, into memory of its own.
    fn measured(
        &self,
        product: &Product,
        conditions: &Conditions,
        plan: &Plan,
        algorithms: &[sys::cublasLtMatmulAlgo_t],
        operands: &Operands,
        stream: driver::CUstream,
    ) -> Result<sys::cublasLtMatmulAlgo_t, CudaError> {
        let rows = match product.batch {
            Some(batch) => (batch.count - 1) * batch.c + product.m * product.c_stride,
            None => product.m * product.c_stride,
        };
        let (mut scratch, mut events) = (0, [std::ptr::null_mut(); 2]);
        // SAFETY: the pointers are to locals; the stream belongs to the current context.
        unsafe {
            let code = driver::cuMemAllocAsync(&mut scratch, rows * product.output.bytes(), stream);
            check("cuMemAllocAsync", code)?;
            for event in &mut events {
                check("cuEventCreate", driver::cuEventCreate(event, 0))?;
            }
        }
        let beta = if conditions.accumulate { 1.0 } else { 0.0 };
        let add = if operands.add == 0 { scratch } else { operands.add };
        let operands = Operands { c: scratch, add, ..*operands };
        let time = |algorithm, runs: usize| {
            let plan = Plan { algorithm, ..*plan };
            let mut ms = 0.0;
            // SAFETY: events and stream are alive and of the current context.
            unsafe {
                check("cuEventRecord", driver::cuEventRecord(events[0], stream))?;
                for _ in 0..runs {
                    self.run(product, &plan, &operands, 1.0, beta, stream)?;
                }
                check("cuEventRecord", driver::cuEventRecord(events[1], stream))?;
                check("cuEventSynchronize", driver::cuEventSynchronize(events[1]))?;
                let code = driver::cuEventElapsedTime_v2(&mut ms, events[0], events[1]);
                check("cuEventElapsedTime", code)?;
            }
            Ok(ms / runs as f32)
        };
        // In turn, so that all of them meet the same clock rates; a first round warms up.
        let times: Result<Vec<f32>, CudaError> = (|| {
            let mut fastest = f32::INFINITY;
            for algorithm in algorithms {
                fastest = fastest.min(time(*algorithm, 1)?);
            }
            // Several in a row where one is short: the launches that an algorithm needs count too.
            let runs = (ENOUGH_MS / fastest).ceil().clamp(1.0, 16.0) as usize;
            let mut best = vec![f32::INFINITY; algorithms.len()];
            for round in 0..ROUNDS {
                let limit = match round {
                    0 => f32::INFINITY,
                    _ => HOPEFUL * best.iter().copied().fold(f32::INFINITY, f32::min),
                };
                for (best, algorithm) in best.iter_mut().zip(algorithms) {
                    if round == 0 || *best <= limit {
                        *best = best.min(time(*algorithm, runs)?);
                    }
                }
            }
            Ok(best)
        })();
        // SAFETY: nothing uses them after this point of the stream.
        unsafe {
            driver::cuMemFreeAsync(scratch, stream);
            for event in events {
                driver::cuEventDestroy_v2(event);
            }
        }
        let times = times?;
        let fastest = (0..times.len()).min_by(|i, j| times[*i].total_cmp(&times[*j])).unwrap_or(0);
        let taken = if times[fastest] < WORTH * times[0] { fastest } else { 0 };
        let Product { m, n, k, .. } = product;
        tracing::debug!("product {m}x{k}x{n}: algorithm {taken} of {times:?}");
        Ok(algorithms[taken])
    }
}
