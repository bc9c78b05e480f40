//! The directory of a run: refused when it is in use, never deleted beyond what a run writes.

use std::fs;
use std::path::Path;

use dualspeed_core::files;

use crate::checkpoint::Checkpoints;
use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::origins::Origins;
use crate::run_files::*;

/// Refuses a directory that holds anything but a lock, unless `overwrite` is set; says whether it does.
///
/// # Errors
/// `RunDirExists`, or it cannot be listed.
pub(crate) fn check(dir: &Path, overwrite: bool) -> Result<bool, TrainError> {
    let occupied = match fs::read_dir(dir) {
        Ok(entries) => entries.flatten().any(|entry| entry.file_name() != LOCK_FILE),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(TrainError::io("list", dir)(error)),
    };
    match occupied && !overwrite {
        true => Err(TrainError::RunDirExists { path: dir.to_owned() }),
        false => Ok(occupied),
    }
}

/// Makes a fresh run directory and writes the config and what the run starts from into it.
///
/// # Errors
/// As [`check`]. With `overwrite` the files of the earlier run are removed, and nothing else.
pub(crate) fn create(
    dir: &Path,
    overwrite: bool,
    config: &TrainConfig,
    origins: &Origins,
) -> Result<(), TrainError> {
    if check(dir, overwrite)? {
        let files = [METRICS_FILE, VALIDATION_FILE, ORIGINS_FILE, RECORDS_FILE, RESUMES_FILE];
        Checkpoints::new(dir, 1).remove_all()?;
        for name in files {
            remove(&dir.join(name))?;
        }
    }
    fs::create_dir_all(dir).map_err(TrainError::io("create", dir))?;
    origins.write(dir)?;
    write_config(dir, config)
}

/// Writes the config of a run, in which every value is written out.
///
/// # Errors
/// `Io`, or a number does not fit TOML.
pub(crate) fn write_config(dir: &Path, config: &TrainConfig) -> Result<(), TrainError> {
    let (path, text) = (dir.join(CONFIG_FILE), config.to_toml()?);
    if fs::read(&path).is_ok_and(|written| written == text.as_bytes()) {
        return Ok(());
    }
    files::write_atomic(&path, text.as_bytes()).map_err(TrainError::io("write", path))
}

fn remove(path: &Path) -> Result<(), TrainError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
