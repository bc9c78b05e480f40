//! What the weights that a run starts from were read from, by content.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use dualspeed_core::hash::hex;
use dualspeed_model::import::Checkpoint;
use dualspeed_train::origins::{INIT_FROM, VISION_TOWER};
use dualspeed_train::{Origin, Origins, TrainError, model_digest};
use sha2::{Digest, Sha256};

use crate::embedded_tower;

/// The files of a published checkpoint: its configuration, and all that a weight is read from. A vision tower in a
/// directory of its own is an origin of its own.
///
/// # Errors
/// If a file cannot be read.
pub(crate) fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Origins, TrainError> {
    let dir = checkpoint.path();
    let weights = checkpoint.weights().tensors().values().map(|info| info.path.clone());
    let (mut own, tower): (BTreeSet<PathBuf>, BTreeSet<PathBuf>) =
        weights.partition(|file| file.parent() == Some(dir));
    own.insert(dir.join("config.json"));
    let mut origins = Origins::default();
    origins.insert(INIT_FROM, Origin::of_files(dir, &own)?);
    if let Some(dir) = tower.first().and_then(|file| file.parent()) {
        let mut files = tower.clone();
        files.extend(Some(dir.join("config.json")).filter(|file| file.is_file()));
        origins.insert(VISION_TOWER, Origin::of_files(dir, &files)?);
    }
    Ok(origins)
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
