//! `validation.jsonl`: one record per validation.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::jsonl::{JsonlLog, read_lines};
use crate::error::TrainError;

/// The means of one validation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ValidationRecord {
    /// Optimiser steps done before it.
    pub(crate) step: u64,
    /// The cross entropy.
    pub(crate) ce: f64,
    /// The share of tokens that are guessed right.
    pub(crate) accuracy: f64,
    /// Supervised tokens.
    pub(crate) tokens: usize,
}

/// The log of validations, and what is in it.
#[derive(Debug)]
pub(crate) struct ValidationLog {
    path: PathBuf,
    /// `None` before the first validation of a run: there is no file.
    log: Option<JsonlLog>,
    records: Vec<ValidationRecord>,
}

impl ValidationLog {
    /// Opens the log of a run that goes on after `step` steps: a validation at that step is kept, later ones are made again.
    ///
    /// # Errors
    /// `TrainError::Io`.
    pub(crate) fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        // There is no validation before the first step.
        let end = if step == 0 { 0 } else { step + 1 };
        let path = path.to_owned();
        if !path.exists() {
            return Ok(Self { path, log: None, records: Vec::new() });
        }
        let (log, _) = JsonlLog::open(&path, end)?;
        let records = read_lines(&path)?;
        Ok(Self { path, log: Some(log), records })
    }

    /// Whether a validation at that step is in the log.
    pub(crate) fn has(&self, step: u64) -> bool {
        self.records.iter().any(|record| record.step == step)
    }

    /// Appends a record.
    ///
    /// # Errors
    /// `TrainError::Io`.
    pub(crate) fn write(&mut self, record: ValidationRecord) -> Result<(), TrainError> {
        let log = match self.log.take() {
            Some(log) => log,
            None => JsonlLog::open(&self.path, 0)?.0,
        };
        self.log.insert(log).write(&record)?;
        self.records.push(record);
        Ok(())
    }

    /// Waits until all records are on disk.
    ///
    /// # Errors
    /// `TrainError::Io`.
    pub(crate) fn sync(&self) -> Result<(), TrainError> {
        self.log.as_ref().map_or(Ok(()), JsonlLog::sync)
    }

    /// The `count` steps of lowest cross entropy among `steps`, best first; of equal ones the earlier.
    pub(crate) fn best(&self, steps: &[u64], count: usize) -> Vec<u64> {
        let known = self.records.iter().filter(|record| steps.contains(&record.step));
        let mut known: Vec<_> = known.filter(|record| record.ce.is_finite()).collect();
        known.sort_by(|a, b| a.ce.total_cmp(&b.ce));
        known.iter().take(count).map(|record| record.step).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(step: u64, ce: f64) -> ValidationRecord {
        ValidationRecord { step, ce, accuracy: 0.5, tokens: 7 }
    }

    #[test]
    fn a_validation_of_the_last_step_is_kept_and_the_best_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("validation.jsonl");
        let mut log = ValidationLog::open(&path, 0).unwrap();
        for (step, ce) in [(5, 3.0), (10, 1.0), (15, f64::NAN), (20, 2.0), (25, 1.0)] {
            log.write(record(step, ce)).unwrap();
        }
        assert_eq!(log.best(&[5, 10, 15, 20, 25], 3), [10, 25, 20]);
        assert_eq!(log.best(&[5, 15, 20], 3), [20, 5]);
        assert!(log.best(&[5, 15, 20], 0).is_empty());
        drop(log);
        let log = ValidationLog::open(&path, 10).unwrap();
        assert_eq!(log.records, [record(5, 3.0), record(10, 1.0)]);
        assert!(log.has(10) && !log.has(15));
        let log = ValidationLog::open(&path, 9).unwrap();
        assert_eq!((log.records.len(), log.has(10)), (1, false));
        assert!(ValidationLog::open(&path, 0).unwrap().records.is_empty());
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }
}
