//! What the section `[data.features]` asks for.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use dualspeed_data::{ExampleSource, OnError};
use dualspeed_model::{Needs, Tower};
use dualspeed_ops::Backend;

use super::{FeatureCache, FeatureStore, Filling, tower_fingerprint};
use crate::config::{CacheMode, FeaturesConfig};
use crate::error::TrainError;

/// Which features are computed, and how.
#[derive(Clone, Debug)]
pub struct FeatureWork<'a> {
    /// Features beyond the hidden state.
    pub needs: Needs,
    /// Images that go through the tower at once.
    pub batch: usize,
    /// Samples, from the start of the set; more than there are means all.
    pub samples: usize,
    /// Whether a progress bar is shown.
    pub progress: bool,
    /// Once it is set, what is computed is kept and the rest is not.
    pub interrupt: Option<&'a AtomicBool>,
    /// What becomes of samples that cannot be made.
    pub on_error: OnError,
}

impl FeatureWork<'_> {
    /// Features of all samples, the first of which that cannot be made is an error.
    pub(super) fn new(needs: Needs, batch: usize, progress: bool) -> Self {
        let (samples, interrupt, on_error) = (usize::MAX, None, OnError::Stop);
        Self { needs, batch, samples, progress, interrupt, on_error }
    }
}

/// The features of a data set as a config asks for them; `None` where the tower is to run in every step.
///
/// # Errors
/// As [`FeatureStore::open`] and [`FeatureCache::compute_stored`]; [`TrainError::FeaturesInterrupted`]; no folder is named and the system names none.
pub fn configured<B: Backend>(
    config: &FeaturesConfig,
    tower: &Tower<B>,
    source: &Arc<dyn ExampleSource>,
    work: FeatureWork<'_>,
    device: &B::Device,
) -> Result<Option<FeatureCache>, TrainError> {
    let store = match config.cache {
        CacheMode::None => return Ok(None),
        CacheMode::Memory => None,
        CacheMode::Disk => {
            let root = config.dir.clone().or_else(|| Some(cache_dir()?.join("features")));
            let root = root.ok_or_else(|| TrainError::FeatureStore {
                path: "data.features.dir".into(),
                problem: "it is not set, and neither is DUALSPEED_CACHE, XDG_CACHE_HOME or HOME"
                    .into(),
                advice: "name a folder".into(),
            })?;
            Some(FeatureStore::open(&root, &tower_fingerprint(tower, device)?, work.needs.clone())?)
        }
    };
    let known = store.as_ref().map(|store| (store.len(), store.dir().to_owned()));
    let cache = Filling::new(tower, store, work, device).run(source)?;
    if let Some((known, dir)) = known {
        tracing::info!(
            "features: {} of {} images computed, the others read from {} ({known} images)",
            cache.computed(),
            cache.len(),
            dir.display()
        );
    }
    Ok(Some(cache))
}

/// Where what can be made again is kept: `$DUALSPEED_CACHE`, else `$XDG_CACHE_HOME/dualspeed`, else `~/.cache/dualspeed`;
/// `None` if none of the variables is set.
pub fn cache_dir() -> Option<PathBuf> {
    let variable =
        |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("DUALSPEED_CACHE").or_else(|| {
        let base = variable("XDG_CACHE_HOME");
        Some(base.or_else(|| Some(variable("HOME")?.join(".cache")))?.join("dualspeed"))
    })
}
