//! Every fast CUDA body against the plain body in f64 on the CPU, forward and backward, and against finite differences:
//! `cargo run --release -p dualspeed-ops --features cuda,ndarray --example cuda_check`.
//!
//! Inputs are fresh random numbers (seeded by the clock, or by the first argument), rounded to the type under test before
//! either side sees them. An error is `|ours - reference| / |reference|` over a whole tensor. The reference is exact for
//! our purposes, so tolerances are a few units of rounding of the type: 2^-9 for bf16, 2^-11 for f16 (outputs and the
//! intermediate results that these kernels round, such as attention weights), and sqrt(k) units of f32 elsewhere. One
//! line per check; the exit code says whether all hold.

mod block;
mod cache;
mod case;
mod data;
mod ops;
mod separate;

use std::process::ExitCode;
use std::time::SystemTime;

use case::Report;

fn main() -> ExitCode {
    let seed = std::env::args().nth(1).and_then(|seed| seed.parse().ok()).unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        now.map_or(1, |now| now.as_nanos() as u64)
    });
    let filter = std::env::args().nth(2).unwrap_or_default();
    let device = burn_cuda::CudaDevice::default();
    println!("seed {seed}, fast bodies: {}", dualspeed_ops::cuda::is_fast(&device));
    let mut report = Report::new(seed, filter);
    for op in ops::all() {
        case::check(&mut report, &op);
    }
    for case in block::all() {
        case::check(&mut report, &case);
    }
    cache::cached_blocks(&mut report);
    separate::farthest_points(&mut report);
    separate::greedy_map(&mut report);
    separate::adamw(&mut report);
    separate::distilled_head(&mut report);
    separate::dropout(&mut report);
    separate::interleaved(&mut report);
    println!("{} checks, {} failed", report.checks, report.failures);
    if report.failures > 0 || report.checks == 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
