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
use crate::samples::{Loaded, SampleCheck, SkippedSample};

/// All micro-batches of one optimiser step.
#[derive(Clone, Debug, PartialEq)]
pub struct Window {
    /// The optimiser step, from 0.
    pub step: u64,
    /// The micro-batches; none is empty, unless every sample of the step was left out: then there is one.
    pub batches: Vec<HostBatch>,
    /// Samples that were left out.
    pub skipped: Vec<SkippedSample>,
    /// How many samples at the end of the window were left out, and whether those are all.
    tail: (usize, bool),
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
    /// Which samples can be used, and what becomes of the others.
    pub samples: SampleCheck,
}

impl WindowPlan {
    /// Makes the window of one step.
    ///
    /// # Errors
    /// The first sample that cannot be read.
    pub fn window(&self, step: u64) -> Result<Window, DataError> {
        let indices = self.sampler.indices(step);
        let count = indices.len();
        let Loaded { examples, skipped } = self.samples.load(&*self.source, indices)?;
        let tail = skipped.iter().rev().zip(1..);
        let tail =
            tail.take_while(|(sample, from_end)| sample.position + from_end == count).count();
        // Cut after samples are left out: a step has the same samples in every batch shape, and no micro-batch is empty.
        let mut batches = Vec::new();
        let mut examples = examples.into_iter();
        while examples.len() > 0 || batches.is_empty() {
            batches.push(collate(examples.by_ref().take(self.micro_batch.max(1)).collect()));
        }
        Ok(Window { step, batches, tail: (tail, tail == count), skipped })
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
            in_a_row: 0,
            max_skipped: self.samples.max_skipped,
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
    /// Samples that were left out since the last that was not.
    in_a_row: usize,
    max_skipped: usize,
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
        let result = result.and_then(|window| self.count(window));
        self.failed = result.is_err();
        Some(result)
    }
}

impl WindowStream {
    /// Counts samples that were left out in a row.
    fn count(&mut self, window: Window) -> Result<Window, LoadError> {
        let (tail, all) = window.tail;
        self.in_a_row = if all { self.in_a_row + tail } else { tail };
        match window.skipped.last() {
            Some(last) if self.in_a_row >= self.max_skipped => Err(LoadError::TooManySkipped {
                in_a_row: self.in_a_row,
                last: last.problem.clone(),
            }),
            _ => Ok(window),
        }
    }
}

/// Why a stream ended early.
#[derive(Debug)]
pub enum LoadError {
    /// A sample could not be read.
    Data(DataError),
    /// A worker panicked.
    Stopped,
    /// Too many samples in a row cannot be used.
    TooManySkipped {
        /// Samples in a row.
        in_a_row: usize,
        /// What was wrong with the last one.
        last: String,
    },
    /// The run was told to end while a read hung.
    Interrupted,
}
