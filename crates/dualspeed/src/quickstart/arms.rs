//! The compared models.

use std::path::{Path, PathBuf};

/// A compared model: the recipe with overrides.
#[derive(Debug, Clone, Copy)]
pub struct Arm {
    /// The key in `summary.json` and the name of the run directory.
    pub name: &'static str,
    /// The label in plots.
    pub label: &'static str,
    /// Overrides of the recipe, `key=value`.
    pub overrides: &'static [&'static str],
}

/// The compared models, the baseline first.
pub const ARMS: &[Arm] = &[
    Arm {
        name: "baseline",
        label: "baseline",
        overrides: &["mode.schedule=always_slow", "distill.lambda=0.0"],
    },
    Arm {
        name: "naive_prune",
        label: "NaivePrune",
        overrides: &["mode.schedule=always_fast", "model.isolator_length=0"],
    },
    Arm { name: "dualspeed", label: "DualSpeed", overrides: &[] },
];

/// The same model without pictures, for the floor that language alone gives.
pub(super) const TEXT_ONLY: Arm = Arm {
    name: "text_only",
    label: "text only",
    overrides: &[
        "mode.schedule=always_slow",
        "distill.lambda=0.0",
        "data.train.scenes.text_only=true",
    ],
};

/// The run directory of the arm of that name, under the quickstart's directory `out`.
pub fn arm_dir(out: &Path, seed: u64, name: &str) -> PathBuf {
    out.join(format!("seed-{seed}")).join(name)
}
