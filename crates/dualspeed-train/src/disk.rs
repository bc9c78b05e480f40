//! Whether a run directory can hold its run, found out before the first step.

use std::fs;
use std::path::Path;

use crate::checkpoint::Checkpoints;
use crate::error::TrainError;

/// Beside checkpoints: a config, records, reports.
const OTHERS: u64 = 1 << 20;

/// Writes a file into a run directory and into its checkpoints, and removes it, and looks for room for `keep` checkpoints of
/// `bytes` each and one that is being written. What earlier checkpoints take is counted as room.
///
/// # Errors
/// `TrainError::Io` where nothing can be written, `TrainError::NoSpace` where not one checkpoint has room. Where a later one
/// has none, that is a warning.
pub(crate) fn probe(dir: &Path, bytes: u64, keep: usize) -> Result<(), TrainError> {
    let checkpoints = Checkpoints::new(dir, 1);
    let folder = dir.join("checkpoints");
    write_probe(dir)?;
    if folder.is_dir() {
        write_probe(&folder)?;
    }
    let Some(free) = free_bytes(dir) else { return Ok(()) };
    let steps = checkpoints.steps()?;
    let there: u64 = steps.iter().map(|step| size(&checkpoints.path(*step))).sum();
    let all = (keep as u64 + 1) * bytes + OTHERS;
    let (free_gib, needed_gib) = (gib(free), gib(bytes + OTHERS));
    if free < bytes + OTHERS && free + there < all {
        return Err(TrainError::NoSpace { path: dir.to_owned(), free_gib, needed_gib });
    }
    if free + there < all {
        tracing::warn!(
            "{} has {:.2} GiB free, {keep} checkpoints and one being written take {:.2}: lower checkpoint.keep, or free some",
            dir.display(),
            gib(free + there),
            gib(all)
        );
    }
    Ok(())
}

fn gib(bytes: u64) -> f64 {
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
        fs::create_dir_all(&run).unwrap();
        fs::write(run.join("notes"), "mine").unwrap();
        probe(&run, 1000, 2).unwrap();
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
