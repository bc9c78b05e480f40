//! The checkpoints of a run: which there are, which stay, and which is read.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use dualspeed_core::files;

use super::files::{Contents, load, read_state, write};
use super::state::CheckpointState;
use super::tensor::HostTensor;
use crate::error::TrainError;

/// The folder of a run's checkpoints.
const DIR: &str = "checkpoints";
/// What is being written has this before its step.
const TEMPORARY: &str = ".tmp-";
/// What is being removed has this before its step: a checkpoint is there whole or not at all.
const REMOVED: &str = ".old-";
/// What was found damaged has this before its name, and is not looked at again.
const DAMAGED: &str = "damaged-";
/// A reader finds the newest checkpoint gone while the run writes newer ones: it looks again at most so often.
const LOOKS: usize = 20;

/// The checkpoints of one run directory.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    run_dir: PathBuf,
    dir: PathBuf,
    keep: usize,
}

/// A checkpoint as it was read.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Its directory.
    pub path: PathBuf,
    /// What it holds beside tensors.
    pub state: CheckpointState,
    /// Its tensors, by name.
    pub tensors: BTreeMap<String, HostTensor>,
    /// Newer checkpoints that are damaged.
    pub damaged: Vec<PathBuf>,
}

impl Checkpoints {
    /// The checkpoints under `run_dir`; the last `keep` (at least one) are kept.
    pub fn new(run_dir: &Path, keep: usize) -> Self {
        let dir = run_dir.join(DIR);
        Self { run_dir: run_dir.to_owned(), dir, keep: keep.max(1) }
    }

    /// Writes a checkpoint atomically, and deletes those that are too many: all but the last ones, and those of the steps
    /// in `best`. What cannot be deleted is a warning.
    ///
    /// # Errors
    /// `TrainError::Io`; nothing half-written is left under a final name.
    pub fn save(
        &self,
        state: &CheckpointState,
        tensors: &BTreeMap<String, HostTensor>,
        best: &[u64],
    ) -> Result<PathBuf, TrainError> {
        let temporary = self.dir.join(format!("{TEMPORARY}{}", state.step));
        let target = self.path(state.step);
        let written = remove(&temporary)
            .and_then(|()| write(&temporary, state, tensors))
            .and_then(|()| self.commit(&temporary, state.step));
        if written.is_err() {
            // The error that matters is the one of writing; what cannot be removed is overwritten
            // next time.
            let _ = fs::remove_dir_all(&temporary);
        }
        written?;
        self.delete_old(state.step, best);
        Ok(target)
    }

    /// Puts the finished temporary directory in its place, replacing one of the same step.
    fn commit(&self, temporary: &Path, step: u64) -> Result<(), TrainError> {
        let target = self.path(step);
        let replaced = target.symlink_metadata().is_ok();
        if replaced {
            self.set_aside(step)?;
        }
        fs::rename(temporary, &target)
            .map_err(TrainError::io("rename the finished checkpoint to", &target))?;
        files::sync_dir(&self.dir).map_err(TrainError::io("sync", &self.dir))?;
        if replaced { remove(&self.removed(step)) } else { Ok(()) }
    }

    /// Takes a checkpoint out of sight in one step: what a crash leaves of it is no checkpoint.
    fn set_aside(&self, step: u64) -> Result<(), TrainError> {
        let (path, removed) = (self.path(step), self.removed(step));
        remove(&removed)?;
        fs::rename(&path, &removed).map_err(TrainError::io("remove", &path))
    }

    fn removed(&self, step: u64) -> PathBuf {
        self.dir.join(format!("{REMOVED}{step}"))
    }

    /// The steps of all checkpoints, ascending.
    ///
    /// # Errors
    /// `Io` when the directory cannot be listed; one that is not there has no checkpoint.
    pub fn steps(&self) -> Result<Vec<u64>, TrainError> {
        let named = |name: &str| {
            let step = name.strip_prefix("step-")?.parse::<u64>().ok()?;
            (self.path(step).file_name()? == name).then_some(step)
        };
        let mut steps: Vec<u64> = self.names()?.iter().filter_map(|name| named(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// What is in the directory, by name.
    fn names(&self) -> Result<Vec<String>, TrainError> {
        let entries = match fs::read_dir(&self.dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(TrainError::io("list", &self.dir)(error)),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(TrainError::io("list", &self.dir))?;
            names.extend(entry.file_name().into_string().ok());
        }
        Ok(names)
    }

    /// The path of the checkpoint of `step`.
    pub fn path(&self, step: u64) -> PathBuf {
        self.dir.join(format!("step-{step:08}"))
    }

    /// Reads the newest checkpoint that is whole; newer ones that are not are named in warnings.
    ///
    /// # Errors
    /// `NoCheckpoint` when there is none, `NoWholeCheckpoint` when all are damaged, `CheckpointFormat` when another version wrote it,
    /// `Io` when it must not be read.
    pub fn load_latest(&self, contents: Contents) -> Result<Loaded, TrainError> {
        let mut damaged = BTreeMap::new();
        for _ in 0..LOOKS {
            let Some(step) = self.newest_but(&damaged)? else { break };
            let path = self.path(step);
            let problem = match load(&path, contents) {
                Ok((state, tensors)) if state.step == step => {
                    let damaged = damaged.into_keys().map(|step| self.path(step)).collect();
                    return Ok(Loaded { path, state, tensors, damaged });
                }
                Ok((state, _)) => format!("it is the one of step {}", state.step),
                // The run that writes here replaced it while it was read.
                Err(TrainError::BadCheckpoint { .. }) if path.symlink_metadata().is_err() => {
                    continue;
                }
                Err(TrainError::BadCheckpoint { problem, .. }) => problem,
                Err(error) => return Err(error),
            };
            tracing::warn!(
                "the checkpoint {} is damaged: {problem}; the newest whole one before it is used",
                path.display()
            );
            damaged.insert(step, problem);
        }
        Err(self.none_whole(damaged))
    }

    fn newest_but(&self, damaged: &BTreeMap<u64, String>) -> Result<Option<u64>, TrainError> {
        Ok(self.steps()?.into_iter().rev().find(|step| !damaged.contains_key(step)))
    }

    fn none_whole(&self, damaged: BTreeMap<u64, String>) -> TrainError {
        let run = self.run_dir.clone();
        if damaged.is_empty() {
            return TrainError::NoCheckpoint { path: self.dir.clone(), run };
        }
        let named = |(step, problem): (u64, String)| format!("step-{step:08}: {problem}");
        let damaged = damaged.into_iter().rev().map(named).collect();
        TrainError::NoWholeCheckpoint { path: self.dir.clone(), run, damaged }
    }

    /// Removes what an earlier process left half-written or half-removed, and gives damaged checkpoints another name, so
    /// that they are found once. Only for the process that writes here; what cannot be done is a warning.
    pub fn clean(&self, damaged: &[PathBuf]) {
        let names = self.names().unwrap_or_default();
        for name in
            names.iter().filter(|name| [TEMPORARY, REMOVED].iter().any(|p| name.starts_with(p)))
        {
            if let Err(error) = remove(&self.dir.join(name)) {
                tracing::warn!("what an earlier process left stays: {error}");
            }
        }
        for path in damaged {
            let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
            let aside = self.dir.join(format!("{DAMAGED}{name}"));
            let renamed = remove(&aside)
                .and_then(|()| fs::rename(path, &aside).map_err(TrainError::io("rename", path)));
            match renamed {
                Ok(()) => tracing::warn!(
                    "the damaged checkpoint {} is now called {}; it may be deleted",
                    path.display(),
                    aside.display()
                ),
                Err(error) => tracing::warn!("a damaged checkpoint keeps its name: {error}"),
            }
        }
    }

    /// Removes all that a run put here, and the directory if nothing else is in it.
    ///
    /// # Errors
    /// `Io` when that cannot be done.
    pub(crate) fn remove_all(&self) -> Result<(), TrainError> {
        let prefixes = ["step-", TEMPORARY, REMOVED, DAMAGED];
        for name in self.names()? {
            let step = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix));
            let step = step.map(|step| step.strip_prefix("step-").unwrap_or(step));
            if step.is_some_and(|step| step.parse::<u64>().is_ok()) {
                remove(&self.dir.join(name))?;
            }
        }
        // Not empty: something in it is not ours.
        let _ = fs::remove_dir(&self.dir);
        Ok(())
    }

    /// Deletes checkpoints up to `newest`, but for the last ones and the best ones.
    fn delete_old(&self, newest: u64, best: &[u64]) {
        let steps = match self.steps() {
            Ok(steps) => steps,
            Err(error) => return tracing::warn!("old checkpoints stay: {error}"),
        };
        let steps: Vec<u64> = steps.into_iter().filter(|step| *step <= newest).collect();
        let kept: BTreeSet<&u64> = steps.iter().rev().take(self.keep).chain(best).collect();
        for step in steps.iter().filter(|step| !kept.contains(step)) {
            let deleted = self.set_aside(*step).and_then(|()| remove(&self.removed(*step)));
            if let Err(error) = deleted {
                tracing::warn!("an old checkpoint stays: {error}");
            }
        }
    }
}

/// Removes a directory or file, if it is there.
fn remove(path: &Path) -> Result<(), TrainError> {
    let removed = match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(TrainError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}

/// The run directory and the step of one of its checkpoints; `None` for any other directory.
pub fn run_and_step(dir: &Path) -> Option<(&Path, u64)> {
    let step = dir.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok()?;
    let checkpoints = dir.parent().filter(|parent| parent.file_name().is_some_and(|n| n == DIR))?;
    let run = checkpoints.parent()?;
    // `checkpoints/step-..` is of the working directory.
    let run = if run.as_os_str().is_empty() { Path::new(".") } else { run };
    (Checkpoints::new(run, 1).path(step).file_name() == dir.file_name()).then_some((run, step))
}

/// Checks that this version reads the newest checkpoint of a run, if it has one: the config of a run that another version
/// made is not worth reading. Damage is not looked for.
///
/// # Errors
/// `CheckpointFormat` when another version wrote it, `Io` when it cannot be read.
pub fn check_format(run_dir: &Path) -> Result<(), TrainError> {
    let checkpoints = Checkpoints::new(run_dir, 1);
    for step in checkpoints.steps()?.into_iter().rev() {
        match read_state(&checkpoints.path(step)) {
            Ok(_) => return Ok(()),
            Err(TrainError::BadCheckpoint { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Identifies the weights in the checkpoint of `step` of a run: equal for equal weights, whatever else is in it.
///
/// # Errors
/// As [`load`].
pub fn model_digest(run_dir: &Path, step: u64) -> Result<String, TrainError> {
    super::files::model_digest(&Checkpoints::new(run_dir, 1).path(step))
}
