//! Loads a checkpoint directory and says how fast and in how much memory.
//!
//!     cargo run --release --features flex --example load_checkpoint -- DIR

use burn_flex::Flex;
use dualspeed::model::import::{Checkpoint, LoadOptions};

fn main() -> anyhow::Result<()> {
    let Some(dir) = std::env::args().nth(1) else {
        anyhow::bail!("give the checkpoint's directory")
    };
    let options = LoadOptions::default();
    let checkpoint = Checkpoint::open(dir.as_ref(), &options)?;
    let (_model, report) = checkpoint.load::<Flex>(&options, &Default::default())?;
    println!(
        "{} tensors, {:.2} GB in {:.1} s: {:.2} GB/s",
        report.loaded.tensors,
        report.loaded.bytes as f64 / 1e9,
        report.elapsed.as_secs_f64(),
        report.gigabytes_per_second()
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .filter(|line| line.starts_with("VmHWM"))
        .for_each(|line| println!("peak memory {line}"));
    Ok(())
}
