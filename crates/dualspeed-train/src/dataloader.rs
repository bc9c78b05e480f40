//! The window stream behind Burn's `DataLoader` trait, for training and for validation.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use burn::data::dataloader::{DataLoader, DataLoaderIterator, Progress};
use dualspeed_data::{DataError, ExampleSource, HostBatch, collate};
use dualspeed_ops::{AutodiffBackend, Backend};

use crate::error::TrainError;
use crate::loader::{LoadError, WindowPlan, WindowStream};
use crate::mode::Mode;
use crate::patience::{Awaited, receive};
use crate::samples::SampleCheck;
use crate::step::{TrainInput, TrainRuntime, ValidInput, ValidRuntime};

/// Micro-batches of the optimiser steps in `steps`, in order.
pub(crate) struct TrainLoader<B: AutodiffBackend> {
    pub(crate) plan: WindowPlan,
    pub(crate) steps: Range<u64>,
    pub(crate) workers: usize,
    /// Set when the run is to end.
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) runtime: Arc<TrainRuntime<B>>,
}

impl<B: AutodiffBackend> DataLoader<B, TrainInput<B>> for TrainLoader<B> {
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<TrainInput<B>> + 'a> {
        // Two windows ahead per worker: enough to hide one slow sample, little host memory.
        let windows = self.plan.stream(self.steps.clone(), self.workers, 2);
        let windows = windows.until(self.stop.clone());
        Box::new(TrainIterator { loader: self, windows, queue: VecDeque::new(), done: 0 })
    }

    fn num_items(&self) -> usize {
        (self.steps.end - self.steps.start) as usize
    }

    fn to_device(&self, _device: &B::Device) -> Arc<dyn DataLoader<B, TrainInput<B>>> {
        // Batches are host data; tensors are made on the training thread, on the model's device.
        self.slice(0, self.num_items())
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, TrainInput<B>>> {
        let at = |offset: usize| (self.steps.start + offset as u64).min(self.steps.end);
        Arc::new(Self {
            plan: self.plan.clone(),
            steps: at(start)..at(end),
            workers: self.workers,
            stop: self.stop.clone(),
            runtime: self.runtime.clone(),
        })
    }
}

struct TrainIterator<'a, B: AutodiffBackend> {
    loader: &'a TrainLoader<B>,
    windows: WindowStream,
    queue: VecDeque<TrainInput<B>>,
    done: usize,
}

impl<B: AutodiffBackend> Iterator for TrainIterator<'_, B> {
    type Item = TrainInput<B>;

    fn next(&mut self) -> Option<TrainInput<B>> {
        if self.queue.is_empty() {
            let runtime = &self.loader.runtime;
            let window = match self.windows.next()? {
                Ok(window) => window,
                Err(LoadError::Data(error)) => {
                    runtime.errors.set(error.into());
                    return None;
                }
                Err(LoadError::TooManySkipped { in_a_row, last }) => {
                    runtime.errors.set(TrainError::TooManySamplesSkipped { in_a_row, last });
                    return None;
                }
                Err(LoadError::Stopped) => {
                    runtime.errors.set(TrainError::Thread { what: "data loading" });
                    return None;
                }
                Err(LoadError::Interrupted) => return None,
            };
            let (step, count) = (window.step, window.batches.len());
            let mut skipped = window.skipped.into_iter().map(|sample| sample.id).collect();
            self.queue.extend(window.batches.into_iter().enumerate().map(|(micro, batch)| {
                let last = micro + 1 == count;
                let skipped = std::mem::take(&mut skipped);
                let (mode, runtime) = (Mode::Fast, runtime.clone());
                TrainInput { batch, step, mode, last, skipped, runtime }
            }));
            self.done += 1;
        }
        self.queue.pop_front()
    }
}

impl<B: AutodiffBackend> DataLoaderIterator<TrainInput<B>> for TrainIterator<'_, B> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.loader.num_items())
    }
}

/// The validation set in its order.
pub(crate) struct ValidLoader<B: Backend> {
    pub(crate) source: Option<Arc<dyn ExampleSource>>,
    pub(crate) range: Range<usize>,
    pub(crate) batch: usize,
    pub(crate) samples: SampleCheck,
    /// Set when the run is to end.
    pub(crate) stop: Arc<AtomicBool>,
    pub(crate) runtime: Arc<ValidRuntime<B>>,
}

impl<B: Backend> DataLoader<B, ValidInput<B>> for ValidLoader<B> {
    /// Batches are made by a thread, two ahead: a read that hangs does not hang the run.
    fn iter<'a>(&'a self) -> Box<dyn DataLoaderIterator<ValidInput<B>> + 'a> {
        let batches = self.source.clone().map(|source| {
            let (sender, receiver) = sync_channel(2);
            let (range, batch) = (self.range.clone(), self.batch.max(1));
            let samples = self.samples.clone();
            thread::spawn(move || {
                for start in range.clone().step_by(batch) {
                    let indices = start..(start + batch).min(range.end);
                    let read = indices.len();
                    let loaded = samples.load(&*source, indices);
                    let failed = loaded.is_err();
                    let made = loaded.map(|loaded| (read, collate(loaded.examples)));
                    // The receiver is gone when the validation was given up.
                    if sender.send(made).is_err() || failed {
                        return;
                    }
                }
            });
            receiver
        });
        Box::new(ValidIterator { loader: self, batches, done: 0 })
    }

    fn num_items(&self) -> usize {
        self.range.len()
    }

    fn to_device(&self, _device: &B::Device) -> Arc<dyn DataLoader<B, ValidInput<B>>> {
        self.slice(0, self.num_items())
    }

    fn slice(&self, start: usize, end: usize) -> Arc<dyn DataLoader<B, ValidInput<B>>> {
        let at = |offset: usize| (self.range.start + offset).min(self.range.end);
        Arc::new(Self {
            source: self.source.clone(),
            range: at(start)..at(end),
            batch: self.batch,
            samples: self.samples.clone(),
            stop: self.stop.clone(),
            runtime: self.runtime.clone(),
        })
    }
}

struct ValidIterator<'a, B: Backend> {
    loader: &'a ValidLoader<B>,
    /// Samples that were read for a batch, and the batch.
    batches: Option<Receiver<Result<(usize, HostBatch), DataError>>>,
    done: usize,
}

impl<B: Backend> Iterator for ValidIterator<'_, B> {
    type Item = ValidInput<B>;

    fn next(&mut self) -> Option<ValidInput<B>> {
        let ValidLoader { stop, runtime, range, .. } = self.loader;
        loop {
            match receive(self.batches.as_ref()?, Some(stop), "a validation batch") {
                Awaited::Item(Ok((read, batch))) => {
                    self.done += read;
                    // Every sample of it was left out.
                    if batch.sample_ids.is_empty() {
                        continue;
                    }
                    return Some(ValidInput { batch, runtime: runtime.clone() });
                }
                Awaited::Item(Err(error)) => runtime.errors.set(error.into()),
                Awaited::Closed if self.done < range.len() => {
                    runtime.errors.set(TrainError::Thread { what: "validation data" });
                }
                Awaited::Closed | Awaited::Stopped => {}
            }
            break;
        }
        self.batches = None;
        None
    }
}

impl<B: Backend> DataLoaderIterator<ValidInput<B>> for ValidIterator<'_, B> {
    fn progress(&self) -> Progress {
        Progress::new(self.done, self.loader.num_items())
    }
}
