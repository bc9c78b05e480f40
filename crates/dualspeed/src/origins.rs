//! What the weights that a run starts from were read from, by content.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dualspeed_core::hash::hex;
use dualspeed_train::origins::{INIT_FROM, VISION_TOWER};
use dualspeed_train::{Origin, Origins, TrainError, model_digest};
use sha2::{Digest, Sha256};

use crate::checkpoint::OpenedCheckpoint;
use crate::embedded_tower;

/// The files of a published checkpoint: its configuration, and all that a weight is read from. A vision tower, parts and an
/// adapter from directories of their own are origins of their own.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn of_checkpoint(opened: &OpenedCheckpoint) -> Result<Origins, TrainError> {
    let dir = opened.checkpoint.path();
    let weights = opened.checkpoint.weights().tensors().values().map(|info| info.path.clone());
    let mut by_dir: BTreeMap<PathBuf, BTreeSet<PathBuf>> = BTreeMap::new();
    for file in weights {
        let parent = file.parent().unwrap_or(dir).to_owned();
        by_dir.entry(parent).or_default().insert(file);
    }
    if let Some(adapter) = &opened.load.adapter {
        by_dir.entry(adapter.clone()).or_default().extend(files_of(adapter)?);
    }
    let base = if dir.is_file() { dir.parent().unwrap_or(dir) } else { dir };
    by_dir.entry(base.to_owned()).or_default();
    let mut origins = Origins::default();
    let mut parts = 0;
    for (dir, mut files) in by_dir {
        files.extend(Some(dir.join("config.json")).filter(|file| file.is_file()));
        let name = if dir == base {
            INIT_FROM.to_owned()
        } else if opened.load.adapter.as_ref() == Some(&dir) {
            format!("{INIT_FROM}.adapter")
        } else if opened.checkpoint.tower.as_ref() == Some(&dir) {
            VISION_TOWER.to_owned()
        } else {
            parts += 1;
            format!("{INIT_FROM}.parts.{parts}")
        };
        origins.insert(&name, Origin::of_files(&dir, &files)?);
    }
    Ok(origins)
}

/// The files of an adapter that weights or settings are read from.
fn files_of(adapter: &Path) -> Result<Vec<PathBuf>, TrainError> {
    let entries = std::fs::read_dir(adapter).map_err(TrainError::io("list", adapter))?;
    let used = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name == "adapter_config.json"
            || [".safetensors", ".bin"].iter().any(|end| name.ends_with(end))
    };
    let paths = entries.flatten().map(|entry| entry.path());
    Ok(paths.filter(|path| path.is_file() && used(path)).collect())
}

/// The weights of an earlier run after `step` steps. What that run started from is in its own directory.
///
/// # Errors
/// If the checkpoint of that step cannot be read.
pub(crate) fn of_run(run: &Path, step: u64) -> Result<Origins, TrainError> {
    let origin = Origin::of(Some(run.to_owned()), "weights", model_digest(run, step)?);
    let mut origins = Origins::default();
    origins.insert(INIT_FROM, Origin { step: Some(step), ..origin });
    Ok(origins)
}

/// The vision tower that the program brings.
pub(crate) fn of_embedded_tower() -> Origins {
    let hash = hex(&Sha256::digest(embedded_tower::WEIGHTS));
    let mut origins = Origins::default();
    origins.insert(VISION_TOWER, Origin::of(None, "the program's own", hash));
    origins
}
