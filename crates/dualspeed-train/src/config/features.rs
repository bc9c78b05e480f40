//! The section `[data.features]`.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::invalid;
use crate::error::ConfigError;

/// Where features of the frozen vision tower are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheMode {
    /// Nowhere: the tower runs in every step.
    #[default]
    None,
    /// In host memory, computed before the first step.
    Memory,
    /// In a folder that runs share, mapped into memory; images that are not there are computed before the first step.
    Disk,
}

/// Features of the frozen vision tower: computed in every step, or once. A resumed run may choose otherwise.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct FeaturesConfig {
    /// Where they are kept.
    pub cache: CacheMode,
    /// The folder of `cache = "disk"`; left out: `features` in `$DUALSPEED_CACHE`, else in `dualspeed` in the user's cache
    /// folder.
    pub dir: Option<PathBuf>,
}

impl FeaturesConfig {
    /// Whether the tower is left out of the steps.
    pub fn is_cached(&self) -> bool {
        self.cache != CacheMode::None
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        match &self.dir {
            Some(dir) if dir.as_os_str().is_empty() => {
                let advice = "name a folder, or leave it out for the user's cache folder";
                Err(invalid("data.features.dir", "\"\"", "it names no folder", advice))
            }
            Some(dir) if self.cache == CacheMode::Disk && dir.is_file() => Err(invalid(
                "data.features.dir",
                dir.display(),
                "it is a file",
                "name a folder, it is made if it is not there",
            )),
            _ => Ok(()),
        }
    }
}
