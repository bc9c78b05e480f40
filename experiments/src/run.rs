//! Runs a study's arms, seed by seed; finished runs are kept.

use std::path::{Path, PathBuf};

use dualspeed::backend::BackendTask;
use dualspeed::data::source_registry;
use dualspeed::experiment::{ExperimentData, RunResult};
use dualspeed::model::Needs;
use dualspeed::ops::AutodiffBackend;
use dualspeed::output::note;
use dualspeed::quickstart::recipe_config;
use dualspeed::run_dir;
use dualspeed::train::TrainConfig;

use crate::scale::Scale;
use crate::study::{Arm, Study};

/// The run directory of an arm with one seed.
pub fn arm_dir(out: &Path, study: &Study, scale: Scale, arm: &Arm, seed: u64) -> PathBuf {
    out.join(study.name).join(scale.name()).join(arm.name).join(format!("seed-{seed}"))
}

/// The configuration of an arm with one seed.
fn arm_config(
    study: &Study,
    scale: Scale,
    arm: &Arm,
    seed: u64,
    overrides: &[String],
) -> anyhow::Result<TrainConfig> {
    let arm_overrides: Vec<&str> = [scale.overrides(), study.base, arm.overrides].concat();
    recipe_config(seed, &arm_overrides, overrides)
}

/// A study with the seeds and the scale to run it at.
pub struct StudyRun<'a> {
    pub study: &'a Study,
    /// The directory of all studies.
    pub out: &'a Path,
    /// Seeds per arm.
    pub seeds: u64,
    pub scale: Scale,
    /// Overrides for every arm.
    pub overrides: &'a [String],
}

impl BackendTask for StudyRun<'_> {
    type Output = anyhow::Result<()>;

    /// Runs the arms that have not finished yet, seed by seed.
    fn run<B: AutodiffBackend>(self, device: &B::Device) -> anyhow::Result<()> {
        let StudyRun { study, out, seeds, scale, overrides } = self;
        (0..seeds).try_for_each(|seed| run_seed::<B>(study, device, out, seed, scale, overrides))
    }
}

fn run_seed<B: AutodiffBackend>(
    study: &Study,
    device: &B::Device,
    out: &Path,
    seed: u64,
    scale: Scale,
    overrides: &[String],
) -> anyhow::Result<()> {
    let mut open = Vec::new();
    for arm in study.arms {
        let dir = arm_dir(out, study, scale, arm, seed);
        let config = arm_config(study, scale, arm, seed, overrides)?;
        if read_result(&dir).is_some() {
            // A finished run answers only for the configuration it was made with.
            anyhow::ensure!(
                run_dir::read_config(&dir)? == config,
                "{} holds a run of another configuration; give another --out, or remove it",
                dir.display()
            );
            note(format_args!("{:<20} seed {seed}: done before", arm.name));
        } else {
            open.push((arm, dir, config));
        }
    }
    let Some((_, _, first)) = open.first() else { return Ok(()) };
    let (scenes, needs) = (scale.test_scenes(), Needs::none());
    let data = ExperimentData::<B>::new(first, scenes, &needs, &source_registry(), device, true)?;
    for (arm, dir, config) in open {
        // What is there has no result: it was cut off, and starts again.
        let result = data.train_and_evaluate::<()>(arm.name, &config, &dir, true)?;
        note(format_args!(
            "{:<20} seed {seed}: full {:.1} %, pruned {:.1} %, {:.0} s",
            arm.name,
            100.0 * result.accuracy("full"),
            100.0 * result.accuracy("pruned"),
            result.train_seconds
        ));
    }
    Ok(())
}

/// The result in a run directory; `None` where no run has finished.
pub fn read_result(dir: &Path) -> Option<RunResult> {
    let text = std::fs::read_to_string(dir.join("result.json")).ok()?;
    serde_json::from_str(&text).ok()
}
