//! The sections of a config, their defaults and their checks.

use std::path::PathBuf;

use dualspeed_core::Options;
use dualspeed_model::{DualSpeedObjective, PrunerSpec};
use serde::{Deserialize, Serialize};

use super::invalid;
use crate::error::ConfigError;
use crate::lr_schedule::Decay;

/// What is trained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Stage 1: projector and isolator.
    Pretrain,
    /// Stage 2: projector, isolator and the language model, by LoRA where the model has it, else in
    /// full.
    Finetune,
    /// Everything but the vision tower, from scratch, in one stage.
    #[default]
    Single,
}

impl Stage {
    /// The name in configs.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Pretrain => "pretrain",
            Stage::Finetune => "finetune",
            Stage::Single => "single",
        }
    }
}

/// What is put on the checkpoint that `init_from` names; paths, or names on the hub.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct InitConfig {
    /// The vision tower's own checkpoint, where `init_from` only names it or is a language model.
    pub vision_tower: Option<PathBuf>,
    /// An adapter, as peft or LLaVA's trainer wrote it: its factors are trained on.
    pub adapter: Option<PathBuf>,
    /// Files of single parts, or directories of such files: `mm_projector.bin`, `mode_isolator.bin`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parts: Vec<PathBuf>,
}

impl InitConfig {
    /// Whether nothing is put on it.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Fast and slow steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModeConfig {
    /// The schedule by name: `bernoulli` (slow with probability `slow_mode_ratio` per step), `periodic` (slow every `every` steps),
    /// `always_fast` (NaivePrune), `always_slow` (full tokens), or one that another crate registers. Left out: `always_fast` in
    /// stage 1 (as published), else `bernoulli`.
    pub schedule: Option<String>,
    /// r: the probability of a slow step under `bernoulli`.
    pub slow_mode_ratio: f64,
    /// The period under `periodic`.
    pub every: u64,
    /// How many steps ago the newest loss is that a schedule sees: at least 2, so that a device is never waited for.
    pub lag: u64,
    /// Options of a schedule of another crate.
    pub options: Options,
}

impl Default for ModeConfig {
    fn default() -> Self {
        Self {
            schedule: None,
            slow_mode_ratio: 0.1,
            every: 10,
            lag: 4,
            options: Options::default(),
        }
    }
}

impl ModeConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(0.0..=1.0).contains(&self.slow_mode_ratio) {
            return Err(invalid(
                "mode.slow_mode_ratio",
                self.slow_mode_ratio,
                "it is a probability",
                "give a number in [0, 1]; the paper uses 0.1",
            ));
        }
        if self.every == 0 {
            return Err(invalid("mode.every", 0, "it is a period", "give at least 1"));
        }
        if self.lag < 2 {
            let problem = "a step begins before the loss of the one before it is known";
            return Err(invalid("mode.lag", self.lag, problem, "give at least 2; 4 is usual"));
        }
        Ok(())
    }
}

/// Which visual tokens fast steps keep.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PruningConfig {
    /// The pruner, and how a fractional kept count is rounded.
    pub pruner: PrunerSpec,
    /// p: the share of visual tokens that is pruned away.
    pub ratio: f64,
}

impl Default for PruningConfig {
    fn default() -> Self {
        Self { pruner: PrunerSpec::default(), ratio: 0.9 }
    }
}

impl PruningConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if (0.0..1.0).contains(&self.ratio) {
            return Ok(());
        }
        let problem = if self.ratio == 1.0 {
            "it prunes every visual token, so the model would see no image"
        } else {
            "it is the share of visual tokens that is pruned away"
        };
        let advice = "give a number in [0, 1); 0.9 keeps one token in ten";
        Err(invalid("pruning.ratio", self.ratio, problem, advice))
    }
}

/// What a step minimises.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ObjectiveConfig {
    /// The objective by name: `dualspeed` (cross entropy, and self-distillation as `[distill]` says), or one that another crate
    /// registers.
    pub name: String,
    /// Options of an objective of another crate.
    pub options: Options,
}

impl Default for ObjectiveConfig {
    fn default() -> Self {
        Self { name: DualSpeedObjective::NAME.into(), options: Options::default() }
    }
}

/// Self-distillation on slow steps: `lambda * KL(teacher || student)` at temperature tau.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DistillConfig {
    /// The weight; 0 leaves the teacher out.
    pub lambda: f64,
    /// The temperature.
    pub tau: f64,
}

impl Default for DistillConfig {
    fn default() -> Self {
        Self { lambda: 1.0, tau: 1.0 }
    }
}

impl DistillConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if !(self.lambda >= 0.0 && self.lambda.is_finite()) {
            let advice = "give 0 (no distillation) or more; the paper uses 1";
            return Err(invalid("distill.lambda", self.lambda, "it is a weight", advice));
        }
        positive("distill.tau", self.tau, "the paper uses 1")
    }
}

/// Learning rates and AdamW.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct OptimConfig {
    /// The base rate; left out: the published one of the stage.
    pub lr: Option<f64>,
    /// The projector's; left out: 2e-5 in stage 2, else the base rate.
    pub projector_lr: Option<f64>,
    /// The newline embedding's (`image_newline`); left out: the projector's, and the base rate under `compat = "official"`, as the
    /// published trainer has it.
    pub newline_lr: Option<f64>,
    /// The isolator's; left out: the projector's.
    pub isolator_lr: Option<f64>,
    /// The vision tower's, where it is trained; left out: 2e-6, as LLaVA-NeXT has it.
    pub vision_tower_lr: Option<f64>,
    /// Share of the steps in which the rate rises linearly.
    pub warmup_ratio: f64,
    /// The shape after the warm-up.
    pub decay: Decay,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decays of the two moments.
    pub betas: [f64; 2],
    /// Added to the root of the second moment.
    pub eps: f64,
    /// The global gradient norm is clipped to this; 0 switches clipping off.
    pub max_grad_norm: f64,
    /// A step whose loss, gradients or update are not finite changes nothing; that many in a row end the run.
    pub max_skipped: u64,
}

impl Default for OptimConfig {
    fn default() -> Self {
        Self {
            lr: None,
            projector_lr: None,
            newline_lr: None,
            isolator_lr: None,
            vision_tower_lr: None,
            warmup_ratio: 0.03,
            decay: Decay::Cosine,
            weight_decay: 0.0,
            betas: [0.9, 0.999],
            eps: 1e-8,
            max_grad_norm: 1.0,
            max_skipped: 10,
        }
    }
}

impl OptimConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let rates = [
            ("lr", self.lr),
            ("projector_lr", self.projector_lr),
            ("newline_lr", self.newline_lr),
            ("isolator_lr", self.isolator_lr),
            ("vision_tower_lr", self.vision_tower_lr),
        ];
        for (name, rate) in rates {
            if let Some(rate) = rate {
                positive(&format!("optim.{name}"), rate, "typical rates are 2e-5 to 1e-3")?;
            }
        }
        if !(0.0..=1.0).contains(&self.warmup_ratio) {
            let advice = "give a number in [0, 1]; 0.03 is usual";
            return Err(invalid(
                "optim.warmup_ratio",
                self.warmup_ratio,
                "it is a share of the steps",
                advice,
            ));
        }
        for beta in self.betas {
            if !(0.0..1.0).contains(&beta) {
                let advice = "give two numbers in [0, 1), usually [0.9, 0.999]";
                return Err(invalid(
                    "optim.betas",
                    format!("{:?}", self.betas),
                    "the moments would not decay",
                    advice,
                ));
            }
        }
        positive("optim.eps", self.eps, "1e-8 is usual")?;
        if self.max_skipped == 0 {
            let advice = "give 1 to end the run at the first such step, or 10, which is usual";
            return Err(invalid("optim.max_skipped", 0, "no run would begin", advice));
        }
        for (key, value) in
            [("optim.weight_decay", self.weight_decay), ("optim.max_grad_norm", self.max_grad_norm)]
        {
            if !(value >= 0.0 && value.is_finite()) {
                return Err(invalid(
                    key,
                    value,
                    "it must not be negative",
                    "give 0 to switch it off",
                ));
            }
        }
        Ok(())
    }
}

/// Samples per step.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct BatchConfig {
    /// Samples of one forward and backward pass.
    pub size: usize,
    /// Passes whose gradients make one update.
    pub accumulation: usize,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self { size: 32, accumulation: 1 }
    }
}

impl BatchConfig {
    /// Samples of one optimiser step.
    pub fn window(&self) -> usize {
        self.size * self.accumulation
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [("batch.size", self.size), ("batch.accumulation", self.accumulation)] {
            if value == 0 {
                return Err(invalid(key, 0, "a step would have no sample", "give at least 1"));
            }
        }
        Ok(())
    }
}

/// What the backward pass of the decoder computes again instead of keeping it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecomputeMode {
    /// Nothing.
    Off,
    /// As little as fits `memory.budget_gib`, or the device's free memory where the backend can tell it; nothing where
    /// neither is known.
    #[default]
    Auto,
    /// Norms and activations; the results of products and attention are kept.
    Products,
    /// Those and the MLP's products; the attention half is kept.
    Attention,
    /// Whole blocks, from their inputs.
    Input,
}

/// Memory of a training step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryConfig {
    /// What is computed again in the backward pass.
    pub recompute: RecomputeMode,
    /// What a step may take in all, in GiB, under `recompute = "auto"`; left out: what the device has free.
    pub budget_gib: Option<f64>,
}

impl MemoryConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.budget_gib.map_or(Ok(()), |gib| {
            positive("memory.budget_gib", gib, "give the device's memory less what others use")
        })
    }
}

/// Checkpoints.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CheckpointConfig {
    /// Steps between checkpoints; 0 writes one at the end only. An interrupted run always writes
    /// one.
    pub every: u64,
    /// How many are kept: the last ones.
    pub keep: usize,
    /// How many are kept besides: those of the lowest cross entropy in validation. They are there where `every` is a multiple of
    /// `validation.every`.
    pub keep_best: usize,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self { every: 500, keep: 2, keep_best: 0 }
    }
}

impl CheckpointConfig {
    pub(super) fn validate(&self, validation: &ValidationConfig) -> Result<(), ConfigError> {
        if self.keep == 0 {
            let advice = "give at least 1; checkpoint.every = 0 writes one at the end only";
            return Err(invalid(
                "checkpoint.keep",
                0,
                "no checkpoint would survive, nothing could be resumed",
                advice,
            ));
        }
        if self.keep_best > 0
            && (validation.every == 0
                || self.every == 0
                || !self.every.is_multiple_of(validation.every))
        {
            let advice =
                "let checkpoint.every be a multiple of validation.every, neither of them 0";
            return Err(invalid(
                "checkpoint.keep_best",
                self.keep_best,
                "the best is known by a validation of its own step",
                advice,
            ));
        }
        Ok(())
    }
}

/// Validation while training.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ValidationConfig {
    /// Steps between validations; 0 never validates.
    pub every: u64,
    /// Samples used, from the start of the set; left out: all.
    pub samples: Option<usize>,
}

fn positive(key: &str, value: f64, hint: &str) -> Result<(), ConfigError> {
    if value > 0.0 && value.is_finite() {
        return Ok(());
    }
    Err(invalid(key, value, "it must be a positive number", hint))
}
