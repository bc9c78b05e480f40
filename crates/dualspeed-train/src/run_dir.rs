//! The directory of a run: refused when it is in use, never deleted beyond what a run writes.

use std::fs;
use std::path::Path;

use dualspeed_core::files;

use crate::config::TrainConfig;
use crate::error::TrainError;

/// What a run writes into its directory.
pub const CONFIG_FILE: &str = "config.toml";
/// One record per optimiser step.
pub const METRICS_FILE: &str = "metrics.jsonl";
/// One record per validation.
pub const VALIDATION_FILE: &str = "validation.jsonl";
const CHECKPOINT_DIR: &str = "checkpoints";

/// Refuses a directory that holds anything, unless `overwrite` is set; says whether it does.
///
/// # Errors
/// `RunDirExists`, or it cannot be listed.
pub(crate) fn check(dir: &Path, overwrite: bool) -> Result<bool, TrainError> {
    let occupied = match fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_some(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
        Err(error) => return Err(TrainError::io("list", dir)(error)),
    };
    match occupied && !overwrite {
        true => Err(TrainError::RunDirExists { path: dir.to_owned() }),
        false => Ok(occupied),
    }
}

/// Makes a fresh run directory and writes the config into it.
///
/// # Errors
/// As [`check`]. With `overwrite` the files of the earlier run are removed, and nothing else.
pub(crate) fn create(dir: &Path, overwrite: bool, config: &TrainConfig) -> Result<(), TrainError> {
    if check(dir, overwrite)? {
        for name in [CONFIG_FILE, METRICS_FILE, VALIDATION_FILE] {
            remove(&dir.join(name), |path| fs::remove_file(path))?;
        }
        remove(&dir.join(CHECKPOINT_DIR), |path| fs::remove_dir_all(path))?;
    }
    fs::create_dir_all(dir).map_err(TrainError::io("create", dir))?;
    let path = dir.join(CONFIG_FILE);
    files::write_atomic(&path, config.to_toml()?.as_bytes()).map_err(TrainError::io("write", path))
}

fn remove(path: &Path, how: impl Fn(&Path) -> std::io::Result<()>) -> Result<(), TrainError> {
    match how(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(TrainError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
