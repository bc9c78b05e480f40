//! Whether a run directory can hold its run, found out before the first step.

use std::fs;
use std::path::{Path, PathBuf};

use crate::checkpoint::Checkpoints;
use crate::error::TrainError;

/// Beside checkpoints: a config, records, reports.
const OTHERS: u64 = 1 << 20;

/// A run directory that was looked at; one that was made for it and is still empty is removed again.
#[derive(Debug)]
pub(crate) struct RunSpace {
    made: Option<PathBuf>,
}

impl Drop for RunSpace {
    fn drop(&mut self) {
        if let Some(dir) = &self.made {
            // Fails where the run has written something, as it should.
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Makes `dir` if it is not there, writes a file into it and into its checkpoints, and looks for room for `keep` checkpoints of
/// `bytes` each and one that is being written. What earlier checkpoints take is counted as room.
///
/// # Errors
/// `TrainError::Io` where nothing can be written, `TrainError::NoSpace` where not one checkpoint has room. Where a later one
/// has none, that is a warning.
pub(crate) fn probe(dir: &Path, bytes: u64, keep: usize) -> Result<RunSpace, TrainError> {
    let made = (!dir.exists()).then(|| dir.to_owned());
    fs::create_dir_all(dir).map_err(TrainError::io("create", dir))?;
    let space = RunSpace { made };
    let checkpoints = Checkpoints::new(dir, 1);
    let folder = dir.join("checkpoints");
    for dir in [dir, &folder] {
        if dir.is_dir() {
            write_probe(dir)?;
        }
    }
    let Some(free) = free_bytes(dir) else { return Ok(space) };
    let steps = checkpoints.steps()?;
    let there: u64 = steps.iter().map(|step| size(&checkpoints.path(*step))).sum();
    let all = (keep as u64 + 1) * bytes + OTHERS;
    if free < bytes + OTHERS && free + there < all {
        return Err(TrainError::NoSpace { path: dir.to_owned(), free, needed: bytes + OTHERS });
    }
    if free + there < all {
        tracing::warn!(
            "{} has {:.2} GiB free, {keep} checkpoints and one being written take {:.2}: lower checkpoint.keep, or free some",
            dir.display(),
            gib(free + there),
            gib(all)
        );
    }
    Ok(space)
}

pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1u32 << 30)
}

fn write_probe(dir: &Path) -> Result<(), TrainError> {
    let path = dir.join(format!(".probe-{}", std::process::id()));
    let written = fs::write(&path, b"may be removed");
    // Also what a full disk left of it.
    let _ = fs::remove_file(&path);
    written.map_err(TrainError::io("write into", dir))
}

/// Bytes of the files in a directory.
fn size(dir: &Path) -> u64 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).map(|metadata| metadata.len()).sum()
}

/// What this user may still write on the file system of `dir`; `None` where it does not say.
#[cfg(unix)]
fn free_bytes(dir: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(dir).ok()?;
    // Some network file systems say nothing at all.
    (stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_dir: &Path) -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_found_or_not_and_nothing_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join("a/run");
        drop(probe(&run, 1000, 2).unwrap());
        assert!(!run.exists());
        fs::create_dir_all(&run).unwrap();
        fs::write(run.join("notes"), "mine").unwrap();
        drop(probe(&run, 1000, 2).unwrap());
        assert_eq!(fs::read_dir(&run).unwrap().count(), 1);
        if cfg!(unix) {
            let error = probe(&run, u64::MAX / 8, 2).unwrap_err();
            assert!(matches!(error, TrainError::NoSpace { .. }), "{error}");
            assert!(error.to_string().contains("GiB"), "{error}");
        }
        let file = run.join("notes");
        assert!(matches!(probe(&file, 1000, 2), Err(TrainError::Io { .. })));
    }
}
