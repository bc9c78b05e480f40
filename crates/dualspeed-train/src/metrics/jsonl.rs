//! `metrics.jsonl`: one record per optimiser step, written by the strategy.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::StepRecord;
use crate::error::TrainError;

/// Appends records; each is flushed, so that a crash loses none.
#[derive(Debug)]
pub(crate) struct JsonlLog {
    path: PathBuf,
    file: BufWriter<File>,
}

impl JsonlLog {
    /// Opens the log for the run that continues at `step`: records of that step and later ones,
    /// which the interrupted run wrote after its last checkpoint, are dropped.
    pub(crate) fn open(path: &Path, step: u64) -> Result<Self, TrainError> {
        let kept = if step == 0 { Vec::new() } else { lines_before(path, step)? };
        let mut file = BufWriter::new(File::create(path).map_err(TrainError::io("create", path))?);
        for line in kept {
            writeln!(file, "{line}").map_err(TrainError::io("write", path))?;
        }
        file.flush().map_err(TrainError::io("write", path))?;
        drop(file);
        let file =
            OpenOptions::new().append(true).open(path).map_err(TrainError::io("open", path))?;
        Ok(Self { path: path.to_owned(), file: BufWriter::new(file) })
    }

    pub(crate) fn write(&mut self, record: &StepRecord) -> Result<(), TrainError> {
        let written = serde_json::to_writer(&mut self.file, record)
            .map_err(std::io::Error::from)
            .and_then(|()| self.file.write_all(b"\n"))
            .and_then(|()| self.file.flush());
        written.map_err(TrainError::io("write", &self.path))
    }
}

/// Raw lines, so that what was written is kept byte for byte; a torn last line is dropped.
fn lines_before(path: &Path, step: u64) -> Result<Vec<String>, TrainError> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(TrainError::io("read", path)(error)),
    };
    let mut kept = Vec::new();
    for line in BufReader::new(file).lines() {
        let line = line.map_err(TrainError::io("read", path))?;
        match serde_json::from_str::<StepRecord>(&line) {
            Ok(record) if record.step < step => kept.push(line),
            _ => break,
        }
    }
    Ok(kept)
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
