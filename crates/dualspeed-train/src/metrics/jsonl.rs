//! `metrics.jsonl` and `validation.jsonl`: a record a line, appended and never written again.
//!
//! A resumed run cuts off the records that the interrupted one wrote after its checkpoint. Every line says its step, so
//! the file itself tells where to cut, whichever checkpoint the run goes on from; to cut is one operation of the file system,
//! and a crash leaves the file as it was before or as it is after. A line is one write; what a full disk leaves of one is
//! cut off again. The file is synced before a checkpoint is written, so that a checkpoint's records are on disk when it is.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::StepRecord;
use crate::error::TrainError;

/// A file of records that is appended to.
#[derive(Debug)]
pub(crate) struct JsonlLog {
    path: PathBuf,
    file: File,
    /// Bytes of whole lines.
    len: u64,
}

/// What was found in a file that is continued.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Kept {
    /// Bytes of the lines that are kept.
    len: u64,
    /// Their steps, in order.
    pub(crate) steps: Vec<u64>,
    /// Numbers, from 1, of lines among them that are no record.
    unreadable: Vec<usize>,
}

/// The step of a record, whatever else is in it.
#[derive(Deserialize)]
struct Step {
    step: u64,
}

impl JsonlLog {
    /// Opens a log and keeps the records of steps before `end`: those that a run which goes on at `end` does not write again.
    ///
    /// # Errors
    /// `TrainError::Io`; the file is as it was.
    pub(crate) fn open(path: &Path, end: u64) -> Result<(Self, Kept), TrainError> {
        let kept = scan(path, end)?;
        let file = OpenOptions::new().create(true).append(true).open(path);
        let file = file.map_err(TrainError::io("open", path))?;
        let length = file.metadata().map_err(TrainError::io("open", path))?.len();
        if length != kept.len {
            file.set_len(kept.len).map_err(TrainError::io("shorten", path))?;
            file.sync_all().map_err(TrainError::io("sync", path))?;
        }
        if let Some(line) = kept.unreadable.first() {
            tracing::warn!("{}: line {line} is no record; it stays as it is", path.display());
        }
        let (path, len) = (path.to_owned(), kept.len);
        Ok((Self { path, file, len }, kept))
    }

    /// Opens the log of optimiser steps, one record each, for a run that goes on at `step`.
    ///
    /// # Errors
    /// As [`open`](Self::open). That steps are missing is a warning: the model is what counts.
    pub(crate) fn open_steps(path: &Path, step: u64) -> Result<Self, TrainError> {
        let (log, kept) = Self::open(path, step)?;
        let mut known = kept.steps;
        known.sort_unstable();
        known.dedup();
        if known.len() as u64 != step {
            tracing::warn!(
                "{} has records of {} of the {step} steps before; the others are lost, the model has all of them",
                path.display(),
                known.len()
            );
        }
        Ok(log)
    }

    /// Appends a record, as one line.
    ///
    /// # Errors
    /// `TrainError::Io`; nothing of the record is left in the file.
    pub(crate) fn write(&mut self, record: &impl Serialize) -> Result<(), TrainError> {
        let line = serde_json::to_vec(record).map_err(std::io::Error::from);
        let written = line.and_then(|mut line| {
            line.push(b'\n');
            self.file.write_all(&line)?;
            Ok(line.len() as u64)
        });
        match written {
            Ok(bytes) => self.len += bytes,
            Err(error) => {
                // Best effort: a torn line is also cut off when the run is resumed.
                let _ = self.file.set_len(self.len);
                return Err(TrainError::io("write", &self.path)(error));
            }
        }
        Ok(())
    }

    /// Waits until all records are on disk.
    ///
    /// # Errors
    /// `TrainError::Io`.
    pub(crate) fn sync(&self) -> Result<(), TrainError> {
        self.file.sync_data().map_err(TrainError::io("sync", &self.path))
    }
}

/// Finds the lines before the first record of step `end` or a later one; a torn last line is not among them.
fn scan(path: &Path, end: u64) -> Result<Kept, TrainError> {
    let mut kept = Kept::default();
    if end == 0 {
        return Ok(kept);
    }
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(kept),
        Err(error) => return Err(TrainError::io("read", path)(error)),
    };
    let mut file = BufReader::with_capacity(1 << 20, file);
    let (mut line, mut position, mut unreadable) = (Vec::new(), 0, Vec::new());
    for number in 1.. {
        line.clear();
        let read = file.by_ref().read_until(b'\n', &mut line);
        position += read.map_err(TrainError::io("read", path))? as u64;
        if line.last() != Some(&b'\n') {
            break;
        }
        match serde_json::from_slice(&line) {
            Ok(Step { step }) if step < end => {
                kept.len = position;
                kept.steps.push(step);
                // Only those that a record follows.
                kept.unreadable.append(&mut unreadable);
            }
            Ok(_) => break,
            Err(_) => unreadable.push(number),
        }
    }
    Ok(kept)
}

/// Reads the records of a file that is open for appending; lines that are no record are left out.
///
/// # Errors
/// `TrainError::Io`.
pub(crate) fn read_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>, TrainError> {
    let bytes = std::fs::read(path).map_err(TrainError::io("read", path))?;
    let lines = bytes.split(|byte| *byte == b'\n');
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Reads a `metrics.jsonl`, for reports.
///
/// # Errors
/// `TrainError::Io` when it cannot be read or a line is no record; the line number is in the
/// message.
pub fn read_metrics(path: &Path) -> Result<Vec<StepRecord>, TrainError> {
    let file = File::open(path).map_err(TrainError::io("read", path))?;
    let mut records = Vec::new();
    for (index, line) in BufReader::new(file).lines().enumerate() {
        let line = line.map_err(TrainError::io("read", path))?;
        let record = serde_json::from_str(&line).map_err(|error| {
            let source = std::io::Error::other(format!("line {}: {error}", index + 1));
            TrainError::io("read", path)(source)
        })?;
        records.push(record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(steps: &[u64]) -> String {
        steps.iter().map(|step| format!("{{\"step\":{step},\"loss\":1.5}}\n")).collect()
    }

    fn opened(content: &[u8], end: u64) -> (Vec<u8>, Kept) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.jsonl");
        std::fs::write(&path, content).unwrap();
        let (mut log, kept) = JsonlLog::open(&path, end).unwrap();
        let opened = std::fs::read(&path).unwrap();
        log.write(&serde_json::json!({"step": end})).unwrap();
        let appended = [&opened[..], format!("{{\"step\":{end}}}\n").as_bytes()].concat();
        assert_eq!(std::fs::read(&path).unwrap(), appended);
        (opened, kept)
    }

    #[test]
    fn what_the_run_writes_again_is_cut_off() {
        let whole = lines(&[0, 1, 2, 3]);
        for (end, expected) in [(0, vec![]), (2, vec![0, 1]), (4, vec![0, 1, 2, 3])] {
            let (content, kept) = opened(whole.as_bytes(), end);
            assert_eq!(content, lines(&expected).as_bytes());
            assert_eq!((kept.steps, kept.unreadable), (expected, vec![]));
        }
        // A torn last line, and bytes that are no text.
        for tail in [&b"{\"step\":3,\"lo"[..], b"\xff\xfe\n", b"\0\0\0\0"] {
            let content = [lines(&[0, 1, 2]).as_bytes(), tail].concat();
            let (content, kept) = opened(&content, 4);
            assert_eq!((content, kept.steps), (lines(&[0, 1, 2]).into_bytes(), vec![0, 1, 2]));
        }
    }

    #[test]
    fn a_damaged_line_among_others_stays_and_is_counted() {
        let content = [lines(&[0]), "\u{0}\u{0}\n".into(), lines(&[2, 3])].concat();
        let (opened, kept) = opened(content.as_bytes(), 3);
        assert_eq!(opened, &content.as_bytes()[..content.len() - lines(&[3]).len()]);
        assert_eq!((kept.steps, kept.unreadable), (vec![0, 2], vec![2]));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_leaves_no_torn_line() {
        let (mut log, _) = JsonlLog::open(Path::new("/dev/full"), 0).unwrap();
        let error = log.write(&serde_json::json!({"step": 0})).unwrap_err();
        assert!(error.to_string().contains("disk is full"), "{error}");
        assert_eq!(log.len, 0);
    }
}
