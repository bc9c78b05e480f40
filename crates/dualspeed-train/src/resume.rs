//! What a resumed run is given, compared with what it began with.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use dualspeed_data::{BatchSampler, ExampleSource};
use serde::{Deserialize, Serialize};

use crate::checkpoint::{Checkpoints, Contents, Loaded};
use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::metrics::{JsonlLog, read_lines};
use crate::origins::Origins;
use crate::records::{Moved, Records};
use crate::run_dir;
use crate::run_files::{METRICS_FILE, RESUMES_FILE};

/// A run that goes on.
pub(crate) struct Resumed {
    pub(crate) loaded: Loaded,
    records: Option<(Records, Moved)>,
}

/// A line of [`RESUMES_FILE`].
#[derive(Serialize)]
struct ResumeRecord<'a> {
    step: u64,
    /// In seconds since 1970.
    time: u64,
    process: u32,
    changes: &'a [String],
    /// Newer checkpoints that could not be used.
    damaged: Vec<String>,
}

impl Resumed {
    /// Reads the newest whole checkpoint and compares config, data and origins with what is given now; what is accepted is
    /// written down.
    ///
    /// # Errors
    /// As [`Checkpoints::load_latest`]; `ForeignCheckpoint` and `OriginChanged` name everything that stands in the way; `Io`.
    pub(crate) fn open(
        run_dir: &Path,
        checkpoints: &Checkpoints,
        config: &TrainConfig,
        source: &dyn ExampleSource,
        origins: &Origins,
    ) -> Result<Self, TrainError> {
        let loaded = checkpoints.load_latest(Contents::All)?;
        let state = &loaded.state;
        let changes = config.resume_changes(&state.config, state.total_steps)?;
        let (mut differing, mut accepted) = (changes.refused, changes.accepted);

        let recorded = match Origins::read(run_dir)? {
            Some(recorded) => {
                recorded.check(origins, run_dir)?;
                recorded
            }
            None => {
                tracing::warn!(
                    "{} has no record of what it started from; what is there now is taken for it",
                    run_dir.display()
                );
                Origins::default()
            }
        };
        let records = match Records::read(run_dir)? {
            Some(records) => records.moved(source).map(|moved| (records, moved)),
            None => None,
        };
        match &records {
            Some((_, moved)) => {
                let mut revised = config.data.revised.clone();
                if !moved.is_nothing() {
                    revised.extend(skipped_samples(&run_dir.join(METRICS_FILE))?);
                }
                differing.extend(moved.refusal(&revised));
                if !moved.is_nothing() {
                    accepted.push(format!("data.train: {}", moved.summary()));
                }
            }
            None if source.fingerprint() != state.data => differing.push(format!(
                "data.train is {}, was {}: the run would go on with other data than it began with, and which records differ \
                 is not known",
                source.fingerprint(),
                state.data
            )),
            None => {}
        }
        if !differing.is_empty() {
            return Err(TrainError::ForeignCheckpoint { path: loaded.path, differing });
        }
        let resumed = Self { loaded, records };
        resumed.write_down(run_dir, checkpoints, config, recorded, origins, &accepted)?;
        Ok(resumed)
    }

    fn write_down(
        &self,
        run_dir: &Path,
        checkpoints: &Checkpoints,
        config: &TrainConfig,
        mut recorded: Origins,
        origins: &Origins,
        accepted: &[String],
    ) -> Result<(), TrainError> {
        for change in accepted {
            tracing::warn!("resumed with a change: {change}");
        }
        checkpoints.clean(&self.loaded.damaged);
        if recorded.update(origins) {
            recorded.write(run_dir)?;
        }
        // The next resume, and whoever loads the model, goes by what was accepted.
        run_dir::write_config(run_dir, config)?;
        let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let name = |path: &std::path::PathBuf| path.display().to_string();
        let (mut log, _) = JsonlLog::open(&run_dir.join(RESUMES_FILE), u64::MAX)?;
        log.write(&ResumeRecord {
            step: self.loaded.state.step,
            time,
            process: std::process::id(),
            changes: accepted,
            damaged: self.loaded.damaged.iter().map(name).collect(),
        })
    }

    /// The sampler of the run, over the records as they stand now.
    pub(crate) fn sampler(&self, source: &dyn ExampleSource, config: &TrainConfig) -> BatchSampler {
        let (window, seed, grouping) = (config.batch.window(), config.seed, config.data.grouping);
        match &self.records {
            None => BatchSampler::new(source, window, seed, grouping),
            Some((records, moved)) => {
                let shapes = records.shapes.clone();
                let sampler = BatchSampler::of_shapes(shapes, window, seed, grouping);
                match moved.is_nothing() {
                    true => sampler,
                    false => sampler.with_places(moved.places.clone()),
                }
            }
        }
    }
}

/// Ids of the samples that the run itself found bad and left out: that they are removed or corrected needs no other word.
fn skipped_samples(metrics: &Path) -> Result<BTreeSet<String>, TrainError> {
    #[derive(Deserialize)]
    struct Skipped {
        #[serde(default)]
        skipped_samples: Vec<String>,
    }
    if !metrics.exists() {
        return Ok(BTreeSet::new());
    }
    let records: Vec<Skipped> = read_lines(metrics)?;
    Ok(records.into_iter().flat_map(|record| record.skipped_samples).collect())
}

/// The sampler of a run that begins, and the records that go into its directory.
pub(crate) fn first_sampler(
    given: &dyn ExampleSource,
    source: &dyn ExampleSource,
    config: &TrainConfig,
) -> (BatchSampler, Option<Records>) {
    let (window, seed, grouping) = (config.batch.window(), config.seed, config.data.grouping);
    let shapes = BatchSampler::shapes(source, grouping);
    let records = Records::of(given, &shapes);
    (BatchSampler::of_shapes(shapes, window, seed, grouping), records)
}
