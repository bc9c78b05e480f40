//! Batches ahead of the training thread: host threads make them, in order, without deciding
//! anything.
//!
//! What is in the window of optimiser step `s` is a function of (seed, s): the sampler gives
//! `size * accumulation` indices, cut into micro-batches of `size`. So (8, 1), (4, 2) and (2, 4) train on
//! the same samples, and a resumed run starts anywhere. A window that the end of an epoch leaves
//! short is a step of its own.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use dualspeed_data::{BatchSampler, DataError, ExampleSource, HostBatch, collate};

use crate::patience::{Awaited, receive};

/// All micro-batches of one optimiser step.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The optimiser step, from 0.
    pub step: u64,
    /// The micro-batches; none is empty.
    pub batches: Vec<HostBatch>,
}

/// How windows are made.
#[derive(Clone)]
pub struct WindowPlan {
    /// Where examples come from.
    pub source: Arc<dyn ExampleSource>,
    /// Which examples a step takes; its batch size is the window's.
    pub sampler: Arc<BatchSampler>,
    /// Samples of a micro-batch.
    pub micro_batch: usize,
}

impl WindowPlan {
    /// Makes the window of one step.
    ///
    /// # Errors
    /// The first sample that cannot be read.
    pub fn window(&self, step: u64) -> Result<Window, DataError> {
        let indices = self.sampler.indices(step);
        let batches = indices
            .chunks(self.micro_batch.max(1))
            .map(|chunk| {
                let examples: Result<Vec<_>, _> =
                    chunk.iter().map(|index| self.source.get(*index)).collect();
                examples.map(collate)
            })
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Window { step, batches })
    }

    /// The windows of `steps`, made by `workers` threads that run up to `ahead` windows each in
    /// advance.
    ///
    /// Worker k makes the windows of every `workers`-th step; the stream takes them in turn, so the
    /// order is fixed.
    pub fn stream(
        &self,
        steps: std::ops::Range<u64>,
        workers: usize,
        ahead: usize,
    ) -> WindowStream {
        let workers = workers.max(1);
        let receivers = (0..workers as u64)
            .map(|worker| {
                let (sender, receiver) = sync_channel(ahead.max(1));
                let (plan, steps) = (self.clone(), steps.clone());
                thread::spawn(move || plan.produce(steps, worker, workers as u64, &sender));
                receiver
            })
            .collect();
        WindowStream {
            receivers,
            next: steps.start,
            first: steps.start,
            end: steps.end,
            failed: false,
            stop: None,
        }
    }

    fn produce(
        &self,
        steps: std::ops::Range<u64>,
        worker: u64,
        workers: u64,
        sender: &SyncSender<Result<Window, DataError>>,
    ) {
        let mut step = steps.start + worker;
        while step < steps.end {
            let window = self.window(step);
            let failed = window.is_err();
            // The receiver is gone when training stopped early.
            if sender.send(window).is_err() || failed {
                return;
            }
            step += workers;
        }
    }
}

/// Windows in the order of their steps.
pub struct WindowStream {
    receivers: Vec<Receiver<Result<Window, DataError>>>,
    first: u64,
    next: u64,
    end: u64,
    failed: bool,
    stop: Option<Arc<AtomicBool>>,
}

impl WindowStream {
    /// The same, but once `stop` is set it ends with [`LoadError::Interrupted`] rather than wait for a read that hangs.
    pub fn until(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop: Some(stop), ..self }
    }
}

impl Iterator for WindowStream {
    type Item = Result<Window, LoadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.next >= self.end {
            return None;
        }
        let turn = ((self.next - self.first) % self.receivers.len() as u64) as usize;
        let what = format!("the samples of step {}", self.next);
        self.next += 1;
        let result = match receive(&self.receivers[turn], self.stop.as_deref(), &what) {
            Awaited::Item(window) => window.map_err(LoadError::Data),
            Awaited::Closed => Err(LoadError::Stopped),
            Awaited::Stopped => Err(LoadError::Interrupted),
        };
        self.failed = result.is_err();
        Some(result)
    }
}

/// Why a stream ended early.
#[derive(Debug)]
pub enum LoadError {
    /// A sample could not be read.
    Data(DataError),
    /// A worker panicked.
    Stopped,
    /// The run was told to end while a read hung.
    Interrupted,
}
