//! Runs a study's arms, seed by seed; what is finished stays.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use dualspeed::backend::BackendTask;
use dualspeed::lab::{Lab, RunResult};
use dualspeed::model::Needs;
use dualspeed::ops::AutodiffBackend;
use dualspeed::quickstart::config;
use dualspeed::train::TrainConfig;

use crate::study::{Arm, Study};

/// How large the runs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scale {
    /// About a minute per arm on two CPU cores: enough to see the order, not the last percent.
    Smoke,
    /// The quickstart's size.
    Quickstart,
}

impl Scale {
    /// Overrides on the quickstart's recipe.
    fn overrides(self) -> &'static [&'static str] {
        match self {
            Scale::Smoke => &[
                "steps=1600",
                "data.train.samples=6000",
                "model.text.hidden_size=64",
                "model.text.num_hidden_layers=2",
                "model.text.num_attention_heads=2",
                "model.text.intermediate_size=176",
                "optim.lr=2e-3",
            ],
            Scale::Quickstart => &[],
        }
    }

    /// Test scenes.
    fn test_scenes(self) -> usize {
        match self {
            Scale::Smoke => 256,
            Scale::Quickstart => dualspeed::quickstart::TEST_SCENES,
        }
    }

    /// The directory's name.
    pub fn name(self) -> &'static str {
        match self {
            Scale::Smoke => "smoke",
            Scale::Quickstart => "quickstart",
        }
    }
}

/// Where one run of an arm is.
pub fn run_dir(out: &Path, study: &Study, scale: Scale, arm: &Arm, seed: u64) -> PathBuf {
    out.join(study.name).join(scale.name()).join(arm.name).join(format!("seed-{seed}"))
}

/// The configuration of one run.
fn arm_config(
    study: &Study,
    scale: Scale,
    arm: &Arm,
    seed: u64,
    overrides: &[String],
) -> anyhow::Result<TrainConfig> {
    let own: Vec<&str> = [scale.overrides(), study.base, arm.overrides].concat();
    config(seed, &own, overrides)
}

/// Arms to run.
pub struct Job<'a> {
    /// The study.
    pub study: &'a Study,
    /// Where runs go.
    pub out: &'a Path,
    /// Seeds per arm.
    pub seeds: u64,
    /// How large the runs are.
    pub scale: Scale,
    /// Overrides for every arm.
    pub overrides: &'a [String],
}

impl BackendTask for Job<'_> {
    type Output = anyhow::Result<()>;

    /// Runs what is not finished yet.
    fn run<B: AutodiffBackend>(self, device: &B::Device) -> anyhow::Result<()> {
        let Job { study, out, seeds, scale, overrides } = self;
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
        let dir = run_dir(out, study, scale, arm, seed);
        let config = arm_config(study, scale, arm, seed, overrides)?;
        if read_result(&dir).is_some() {
            // A finished run answers only for the configuration it was made with.
            anyhow::ensure!(
                dualspeed::run::config(&dir)? == config,
                "{} holds a run of another configuration; give another --out, or remove it",
                dir.display()
            );
            eprintln!("{:<20} seed {seed}: done before", arm.name);
        } else {
            open.push((arm, dir, config));
        }
    }
    let Some((_, _, first)) = open.first() else { return Ok(()) };
    let lab = Lab::<B>::new(first, scale.test_scenes(), Needs::default(), device, true)?;
    for (arm, dir, config) in open {
        // What is there has no result: it was cut off, and starts again.
        let result = lab.run::<()>(arm.name, &config, &dir, true)?;
        eprintln!(
            "{:<20} seed {seed}: full {:.1} %, pruned {:.1} %, {:.0} s",
            arm.name,
            100.0 * result.accuracy("full"),
            100.0 * result.accuracy("pruned"),
            result.train_seconds
        );
    }
    Ok(())
}

/// The result a finished run left.
pub fn read_result(dir: &Path) -> Option<RunResult> {
    let text = std::fs::read_to_string(dir.join("result.json")).ok()?;
    serde_json::from_str(&text).ok()
}
