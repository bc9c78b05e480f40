//! Median times of repeated work.

use std::time::Instant;

use dualspeed_ops::Backend;

/// The time of one piece of work.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    /// Milliseconds of a call: the median.
    pub ms: f64,
    /// Milliseconds between fast and slow repetitions.
    pub spread_ms: f64,
    /// Milliseconds of the very first call, compilation included.
    pub first_ms: f64,
}

/// Times short operations in blocks of calls, from one synchronisation to the next, after a warm-up.
#[derive(Clone, Copy, Debug)]
pub struct BlockTimer {
    /// Milliseconds that a block lasts, roughly.
    pub block_ms: f64,
}

/// Blocks that are counted.
const BLOCKS: usize = 7;
/// Blocks that the warm-up lasts for.
const WARM_UP: f64 = 10.0;
/// A block has no more calls than this.
const CALLS: f64 = 400.0;

impl BlockTimer {
    /// Times `run`, which makes the given number of calls. The spread is that of the middle five of seven blocks.
    ///
    /// # Errors
    /// If the device reports one.
    pub fn time<B: Backend>(
        &self,
        device: &B::Device,
        mut run: impl FnMut(usize),
    ) -> anyhow::Result<Timing> {
        let mut block = |calls: usize| {
            let start = Instant::now();
            run(calls);
            B::sync(device)?;
            anyhow::Ok(start.elapsed().as_secs_f64() * 1e3 / calls as f64)
        };
        let first_ms = block(1)?;
        let estimate = block(3)?.max(1e-3);
        let calls = (self.block_ms / estimate).clamp(1.0, CALLS) as usize;
        // A device that was idle clocks higher for a while.
        let warm_up = Instant::now();
        while warm_up.elapsed().as_secs_f64() * 1e3 < WARM_UP * self.block_ms {
            block(calls)?;
        }
        let mut times = (0..BLOCKS).map(|_| block(calls)).collect::<anyhow::Result<Vec<f64>>>()?;
        times.sort_by(f64::total_cmp);
        let spread_ms = times[BLOCKS - 2] - times[1];
        Ok(Timing { ms: times[BLOCKS / 2], spread_ms, first_ms })
    }
}

/// Times a longer piece of work that waits for its own result: `runs` of it after one that is not counted, fewer when
/// `seconds` have passed. The spread is that of all runs.
pub fn time_few_runs(runs: usize, seconds: f64, mut run: impl FnMut()) -> Timing {
    let begin = Instant::now();
    run();
    let first_ms = begin.elapsed().as_secs_f64() * 1e3;
    let mut times = Vec::new();
    while times.is_empty() || (times.len() < runs && begin.elapsed().as_secs_f64() < seconds) {
        let start = Instant::now();
        run();
        times.push(start.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_by(f64::total_cmp);
    let spread_ms = times[times.len() - 1] - times[0];
    Timing { ms: times[times.len() / 2], spread_ms, first_ms }
}
