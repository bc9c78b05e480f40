//! Checkpoints: one directory per step, complete or absent.
//!
//! `checkpoints/step-00000100/` holds `trainable.safetensors` (the trainable parameters by path, in
//! f32, and both moments of AdamW) and `state.json` (step, config, totals of the metrics). It is
//! written under a temporary name, synced and renamed, so a crash or a full disk leaves the
//! checkpoints that were there. The position of the sampler, the modes and the dropout masks are
//! functions of (seed, step): the step is all that needs storing.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use dualspeed_core::files;
use safetensors::{Dtype, SafeTensors, View, tensor::SafeTensorError};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::metrics::Totals;
use crate::mode::ScheduleState;

/// Raised when the layout changes: a checkpoint of another format is refused by that number.
const FORMAT: u32 = 2;
const TENSORS: &str = "trainable.safetensors";
const STATE: &str = "state.json";

/// What a checkpoint holds beside tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// The version of the layout.
    pub format: u32,
    /// Optimiser steps done; the next step to run.
    pub step: u64,
    /// The config of the run, as JSON.
    pub config: serde_json::Value,
    /// The fingerprint of the training data.
    pub data: String,
    /// Running sums of the metrics.
    pub totals: Totals,
    /// How often each parameter was updated, by path.
    pub updates: BTreeMap<String, u64>,
    /// What the mode schedule has seen.
    pub schedule: ScheduleState,
}

impl Default for CheckpointState {
    /// Nothing done, in this version's format.
    fn default() -> Self {
        Self {
            format: FORMAT,
            step: 0,
            config: serde_json::Value::Null,
            data: String::new(),
            totals: Totals::default(),
            updates: BTreeMap::new(),
            schedule: ScheduleState::default(),
        }
    }
}

/// A tensor on the host: row-major f32 values and their shape.
#[derive(Clone, Debug, PartialEq)]
pub struct HostTensor {
    /// The shape.
    pub shape: Vec<usize>,
    /// The values.
    pub values: Vec<f32>,
}

impl View for &HostTensor {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(self.values.iter().flat_map(|value| value.to_le_bytes()).collect())
    }

    fn data_len(&self) -> usize {
        self.values.len() * 4
    }
}

/// The checkpoints of one run directory.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    dir: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// The checkpoints under `run_dir`; the last `keep` (at least one) are kept.
    pub fn new(run_dir: &Path, keep: usize) -> Self {
        Self { dir: run_dir.join("checkpoints"), keep: keep.max(1) }
    }

    /// Writes a checkpoint atomically and deletes those that are too many.
    ///
    /// # Errors
    /// `TrainError::Io`; nothing half-written is left under a final name.
    pub fn save(
        &self,
        state: &CheckpointState,
        tensors: &BTreeMap<String, HostTensor>,
    ) -> Result<PathBuf, TrainError> {
        let (temporary, target) =
            (self.dir.join(format!(".tmp-{}", state.step)), self.path(state.step));
        let written =
            self.write(&temporary, state, tensors).and_then(|()| commit(&temporary, &target));
        if written.is_err() {
            // The error that matters is the one of writing; what cannot be removed is overwritten
            // next time.
            let _ = fs::remove_dir_all(&temporary);
        }
        written?;
        files::sync_dir(&self.dir).map_err(TrainError::io("sync", &self.dir))?;
        self.delete_old()?;
        Ok(target)
    }

    fn write(
        &self,
        temporary: &Path,
        state: &CheckpointState,
        tensors: &BTreeMap<String, HostTensor>,
    ) -> Result<(), TrainError> {
        if temporary.exists() {
            fs::remove_dir_all(temporary).map_err(TrainError::io("remove", temporary))?;
        }
        fs::create_dir_all(temporary).map_err(TrainError::io("create", temporary))?;
        let path = temporary.join(TENSORS);
        safetensors::serialize_to_file(tensors, None, &path).map_err(|error| match error {
            SafeTensorError::IoError(source) => TrainError::io("write", &path)(source),
            other => TrainError::BadCheckpoint { path: path.clone(), problem: other.to_string() },
        })?;
        files::sync_file(&path).map_err(TrainError::io("sync", &path))?;
        let text = serde_json::to_vec_pretty(state).map_err(|error| TrainError::BadCheckpoint {
            path: temporary.join(STATE),
            problem: error.to_string(),
        })?;
        let path = temporary.join(STATE);
        files::write_synced(&path, &text).map_err(TrainError::io("write", &path))?;
        files::sync_dir(temporary).map_err(TrainError::io("sync", temporary))
    }

    /// The steps of all complete checkpoints, ascending.
    pub fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(TrainError::io("list", &self.dir)(error)),
        };
        let mut steps = Vec::new();
        for entry in entries {
            let entry = entry.map_err(TrainError::io("list", &self.dir))?;
            let name = entry.file_name();
            let step =
                name.to_str().and_then(|name| name.strip_prefix("step-")?.parse::<u64>().ok());
            steps.extend(step);
        }
        steps.sort_unstable();
        Ok(steps)
    }

    /// The path of the checkpoint of `step`.
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    /// Reads the newest checkpoint.
    ///
    /// # Errors
    /// `NoCheckpoint` when there is none, `CheckpointFormat` when another version wrote it, `BadCheckpoint` when it is
    /// damaged.
    pub fn load_latest(
        &self,
    ) -> Result<(PathBuf, CheckpointState, BTreeMap<String, HostTensor>), TrainError> {
        let steps = self.steps()?;
        let Some(step) = steps.last() else {
            return Err(TrainError::NoCheckpoint { path: self.dir.clone() });
        };
        let path = self.path(*step);
        let (state, tensors) = load(&path)?;
        Ok((path, state, tensors))
    }

    fn delete_old(&self) -> Result<(), TrainError> {
        let steps = self.steps()?;
        for step in &steps[..steps.len().saturating_sub(self.keep)] {
            let path = self.path(*step);
            fs::remove_dir_all(&path).map_err(TrainError::io("remove", &path))?;
        }
        Ok(())
    }
}

/// The version of a state's layout, whatever else is in it.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Checks that this version reads the newest checkpoint of a run, if it has one: the config of a run that another version
/// made is not worth reading.
///
/// # Errors
/// `CheckpointFormat` when another version wrote it, `BadCheckpoint` when it does not say, `Io` when it cannot be read.
pub fn check_format(run_dir: &Path) -> Result<(), TrainError> {
    let checkpoints = Checkpoints::new(run_dir, 1);
    match checkpoints.steps()?.last() {
        Some(step) => read_state(&checkpoints.path(*step)).map(|_| ()),
        None => Ok(()),
    }
}

/// The text of a checkpoint's state, whose format is this version's.
fn read_state(path: &Path) -> Result<Vec<u8>, TrainError> {
    let state_path = path.join(STATE);
    let text = fs::read(&state_path).map_err(TrainError::io("read", &state_path))?;
    let Format { format } = serde_json::from_slice(&text).map_err(|error| {
        let problem = format!("{STATE}: {error}");
        TrainError::BadCheckpoint { path: path.to_owned(), problem }
    })?;
    if format != FORMAT {
        let (path, found, expected) = (path.to_owned(), format, FORMAT);
        return Err(TrainError::CheckpointFormat { path, found, expected });
    }
    Ok(text)
}

/// Reads one checkpoint directory.
///
/// # Errors
/// `CheckpointFormat` when another version wrote it, `BadCheckpoint` when it is damaged, `Io` when it cannot be read.
pub fn load(path: &Path) -> Result<(CheckpointState, BTreeMap<String, HostTensor>), TrainError> {
    let bad = |problem: String| TrainError::BadCheckpoint { path: path.to_owned(), problem };
    // The format first, so that a checkpoint of another version is called that and not damaged.
    let state = serde_json::from_slice(&read_state(path)?);
    let state: CheckpointState = state.map_err(|error| bad(format!("{STATE}: {error}")))?;
    let tensor_path = path.join(TENSORS);
    let bytes = fs::read(&tensor_path).map_err(TrainError::io("read", &tensor_path))?;
    let file =
        SafeTensors::deserialize(&bytes).map_err(|error| bad(format!("{TENSORS}: {error}")))?;
    let mut tensors = BTreeMap::new();
    for (name, view) in file.iter() {
        if view.dtype() != Dtype::F32 {
            return Err(bad(format!("{TENSORS}: `{name}` is {:?}, not F32", view.dtype())));
        }
        let (chunks, _) = view.data().as_chunks::<4>();
        let values = chunks.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        tensors.insert(name.to_owned(), HostTensor { shape: view.shape().to_vec(), values });
    }
    Ok((state, tensors))
}

/// Puts the finished temporary directory in its place, replacing one of the same step.
fn commit(temporary: &Path, target: &Path) -> Result<(), TrainError> {
    if target.exists() {
        fs::remove_dir_all(target).map_err(TrainError::io("replace", target))?;
    }
    fs::rename(temporary, target)
        .map_err(TrainError::io("rename the finished checkpoint to", target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(step: u64) -> (CheckpointState, BTreeMap<String, HostTensor>) {
        let state = CheckpointState {
            step,
            config: serde_json::json!({"seed": 1}),
            data: "data".into(),
            updates: BTreeMap::from([("a.weight".to_owned(), step)]),
            ..CheckpointState::default()
        };
        let tensor =
            HostTensor { shape: vec![1, 3], values: vec![1.0, f32::MIN_POSITIVE, step as f32] };
        (state, BTreeMap::from([("model.a.weight".to_owned(), tensor)]))
    }

    #[test]
    fn round_trips_and_keeps_the_last() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 2);
        for step in [5, 10, 15] {
            let (state, tensors) = example(step);
            checkpoints.save(&state, &tensors).unwrap();
        }
        assert_eq!(checkpoints.steps().unwrap(), [10, 15]);
        let (path, state, tensors) = checkpoints.load_latest().unwrap();
        assert_eq!(path, checkpoints.path(15));
        assert_eq!((state, tensors), example(15));
    }

    #[test]
    fn an_unfinished_checkpoint_is_not_seen() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 2);
        fs::create_dir_all(dir.path().join("checkpoints/.tmp-7")).unwrap();
        assert!(matches!(checkpoints.load_latest(), Err(TrainError::NoCheckpoint { .. })));
        let (state, tensors) = example(7);
        checkpoints.save(&state, &tensors).unwrap();
        assert_eq!(checkpoints.steps().unwrap(), [7]);
    }

    #[test]
    fn a_failed_write_is_an_error_and_leaves_the_old_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 1);
        let (state, tensors) = example(1);
        checkpoints.save(&state, &tensors).unwrap();
        // A file where the temporary directory must go: creation fails as on a full disk.
        fs::write(dir.path().join("checkpoints/.tmp-2"), "x").unwrap();
        let (state, tensors) = example(2);
        assert!(matches!(checkpoints.save(&state, &tensors), Err(TrainError::Io { .. })));
        assert_eq!(checkpoints.steps().unwrap(), [1]);
    }

    /// What format 1 had besides, and what it lacked, does not matter: the number decides.
    #[test]
    fn a_checkpoint_of_another_format_is_called_that() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 1);
        let (state, tensors) = example(1);
        let path = checkpoints.save(&state, &tensors).unwrap();
        fs::write(path.join(STATE), r#"{"format": 1, "step": 1, "isolator": {}}"#).unwrap();
        let error = checkpoints.load_latest().unwrap_err();
        assert!(matches!(error, TrainError::CheckpointFormat { found: 1, expected: 2, .. }));
        let message = error.to_string();
        assert_eq!(check_format(dir.path()).unwrap_err().to_string(), message);
        assert!(check_format(&dir.path().join("no run")).is_ok());
        for words in ["step-00000001", "format 1", "reads 2", "train anew", "--overwrite"] {
            assert!(message.contains(words), "{message}");
        }
    }

    #[test]
    fn a_damaged_checkpoint_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let checkpoints = Checkpoints::new(dir.path(), 1);
        let (state, tensors) = example(1);
        let path = checkpoints.save(&state, &tensors).unwrap();
        fs::write(path.join(TENSORS), b"not tensors").unwrap();
        assert!(matches!(checkpoints.load_latest(), Err(TrainError::BadCheckpoint { .. })));
    }
}
