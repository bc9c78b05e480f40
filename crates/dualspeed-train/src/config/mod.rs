//! The configuration of a run: plain data, TOML on disk, checked once.

mod features;
mod load;
mod sections;
mod source;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dualspeed_model::{LlavaConfig, PrunerSpec, View};
use serde::{Deserialize, Serialize};

pub use features::{CacheMode, FeaturesConfig};
pub(crate) use load::differing_keys;
pub use load::{apply_override, from_value, parse_toml, read_toml};
pub use sections::{
    BatchConfig, CheckpointConfig, Compat, DistillConfig, IsolatorConfig, MemoryConfig, ModeConfig,
    OptimConfig, PruningConfig, RecomputeMode, Schedule, Stage, ValidationConfig,
};
pub use source::{DataConfig, LlavaJsonSection, SourceConfig};

use crate::error::ConfigError;
use crate::mode::{AlwaysFast, AlwaysSlow, Bernoulli, ModeSchedule, Periodic};
use crate::optim::{AdamW, GroupRates};
use crate::schedule::WarmupSchedule;

/// One stage of training. A two-stage recipe is two of these; a key left out follows the stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    /// Seed of everything: initialisation, sampling, modes, dropout.
    pub seed: u64,
    /// What is trained.
    pub stage: Stage,
    /// Whether odd choices of the published code are reproduced.
    pub compat: Compat,
    /// Optimiser steps; give this or `epochs`.
    pub steps: Option<u64>,
    /// Passes over the training data; 1 when neither this nor `steps` is given.
    pub epochs: Option<u64>,
    /// The run directory whose model this run starts from (stage 2 after stage 1); left out: fresh
    /// weights.
    pub init_from: Option<PathBuf>,
    /// The architecture.
    pub model: LlavaConfig,
    /// The data sets.
    pub data: DataConfig,
    /// Fast and slow steps.
    pub mode: ModeConfig,
    /// Which visual tokens fast steps keep.
    pub pruning: PruningConfig,
    /// The mode isolator.
    pub isolator: IsolatorConfig,
    /// Self-distillation on slow steps.
    pub distill: DistillConfig,
    /// Learning rates and AdamW.
    pub optim: OptimConfig,
    /// Samples per step.
    pub batch: BatchConfig,
    /// Memory against time.
    pub memory: MemoryConfig,
    /// Checkpoints.
    pub checkpoint: CheckpointConfig,
    /// Validation while training.
    pub validation: ValidationConfig,
}

/// Sections that may differ between a checkpoint and the run that resumes it.
const FREE_ON_RESUME: [&str; 4] = ["checkpoint", "data.features", "memory", "validation"];

impl TrainConfig {
    /// Reads a TOML file, applies overrides in order, and validates.
    ///
    /// # Errors
    /// Everything `ConfigError` can say; unknown keys name the nearest known one.
    pub fn load(path: &Path, overrides: &[String]) -> Result<Self, ConfigError> {
        Self::from_toml_value(read_toml(path)?, overrides)
    }

    /// Parses TOML text, applies overrides in order, and validates.
    pub fn parse(text: &str, overrides: &[String]) -> Result<Self, ConfigError> {
        Self::from_toml_value(parse_toml(text, "config")?, overrides)
    }

    /// Applies overrides to a parsed value, deserialises and validates it.
    pub fn from_toml_value(
        mut value: toml::Value,
        overrides: &[String],
    ) -> Result<Self, ConfigError> {
        for text in overrides {
            apply_override(&mut value, text)?;
        }
        let config: Self = from_value(value)?;
        config.validate()?;
        Ok(config)
    }

    /// The config as TOML, as it is written into run directories.
    ///
    /// # Errors
    /// `ConfigError::Type` when a number does not fit TOML.
    pub fn to_toml(&self) -> Result<String, ConfigError> {
        toml::to_string_pretty(self)
            .map_err(|error| ConfigError::Type { message: error.to_string() })
    }

    /// The config as JSON, the form that checkpoints store and compare.
    pub fn fingerprint(&self) -> Result<serde_json::Value, ConfigError> {
        serde_json::to_value(self).map_err(|error| ConfigError::Type { message: error.to_string() })
    }

    /// The keys in which a stored fingerprint differs from this config, with both values; empty
    /// when a resume is fine.
    pub fn differences(&self, stored: &serde_json::Value) -> Result<Vec<String>, ConfigError> {
        Ok(differing_keys(stored, &self.fingerprint()?, &FREE_ON_RESUME))
    }

    /// Checks every value; called once, before anything is built.
    ///
    /// # Errors
    /// `ConfigError::Invalid` with the key, the value, and what to write instead.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.model.validate().map_err(|error| {
            invalid("model", "..", error.to_string(), "correct the model section")
        })?;
        if self.steps.is_some() && self.epochs.is_some() {
            let (steps, epochs) = (self.steps.unwrap_or_default(), self.epochs.unwrap_or_default());
            let value = format!("{steps}, epochs = {epochs}");
            return Err(invalid("steps", value, "both are given", "give one of them"));
        }
        for (key, value) in [("steps", self.steps), ("epochs", self.epochs)] {
            if value == Some(0) {
                return Err(invalid(key, 0, "nothing would be trained", "give at least 1"));
            }
        }
        self.data.validate()?;
        self.mode.validate()?;
        self.pruning.validate()?;
        self.distill.validate()?;
        self.optim.validate()?;
        self.batch.validate()?;
        self.memory.validate()?;
        self.checkpoint.validate()?;
        if self.stage == Stage::Pretrain && self.optim.lr.is_none() && self.model.lora.is_some() {
            tracing::debug!("stage pretrain: LoRA factors stay frozen");
        }
        Ok(())
    }

    /// Optimiser steps of the run, from the number of windows in an epoch.
    pub fn total_steps(&self, windows_per_epoch: u64) -> u64 {
        match (self.steps, self.epochs) {
            (Some(steps), _) => steps,
            (None, epochs) => epochs.unwrap_or(1) * windows_per_epoch,
        }
    }

    /// The schedule of modes; stage 1 is fast-only unless the config says otherwise, as published.
    pub fn mode_schedule(&self) -> Arc<dyn ModeSchedule> {
        let published = match self.stage {
            Stage::Pretrain => Schedule::AlwaysFast,
            Stage::Finetune | Stage::Single => Schedule::Bernoulli,
        };
        match self.mode.schedule.unwrap_or(published) {
            Schedule::Bernoulli => {
                Arc::new(Bernoulli { seed: self.seed, r: self.mode.slow_mode_ratio })
            }
            Schedule::Periodic => Arc::new(Periodic { every: self.mode.every }),
            Schedule::AlwaysFast => Arc::new(AlwaysFast),
            Schedule::AlwaysSlow => Arc::new(AlwaysSlow),
        }
    }

    /// Visual tokens a fast step keeps of an image of `n`; at least one.
    pub fn keep_count(&self, n: usize) -> usize {
        self.pruning.pruner.keep_count(n, self.pruning.ratio)
    }

    /// The pruner of fast steps: the configured one, or `none` when the ratio is 0.
    pub fn pruner(&self) -> PrunerSpec {
        match self.pruning.ratio {
            0.0 => PrunerSpec { name: "none".into(), ..self.pruning.pruner.clone() },
            _ => self.pruning.pruner.clone(),
        }
    }

    /// The view of fast steps for images of `n` visual tokens.
    pub fn fast_view(&self, n: usize) -> View {
        View::Pruned { keep: self.keep_count(n), isolator: self.isolator_active() }
    }

    /// Whether fast steps prefix the isolator.
    pub fn isolator_active(&self) -> bool {
        self.isolator.enabled && self.model.isolator_length > 0
    }

    /// The base learning rate: `optim.lr`, else 1e-3 in stage 1 and from scratch, 2e-4 for LoRA,
    /// 2e-5 for full tuning.
    pub fn lr(&self) -> f64 {
        self.optim.lr.unwrap_or(match self.stage {
            Stage::Pretrain | Stage::Single => 1e-3,
            Stage::Finetune if self.model.lora.is_some() => 2e-4,
            Stage::Finetune => 2e-5,
        })
    }

    /// The projector's learning rate: `optim.projector_lr`, else 2e-5 in stage 2, else the base
    /// rate.
    pub fn projector_lr(&self) -> f64 {
        self.optim.projector_lr.unwrap_or(match self.stage {
            Stage::Finetune => 2e-5,
            Stage::Pretrain | Stage::Single => self.lr(),
        })
    }

    /// The isolator's learning rate: `optim.isolator_lr`, else the projector's.
    pub fn isolator_lr(&self) -> f64 {
        self.optim.isolator_lr.unwrap_or_else(|| self.projector_lr())
    }

    /// The groups' rates over the base rate.
    pub fn group_rates(&self) -> GroupRates {
        let base = self.lr();
        GroupRates { projector: self.projector_lr() / base, isolator: self.isolator_lr() / base }
    }

    /// Warm-up and decay over `total_steps`.
    pub fn lr_schedule(&self, total_steps: u64) -> WarmupSchedule {
        let warmup = (self.optim.warmup_ratio * total_steps as f64).ceil() as u64;
        WarmupSchedule::new(self.lr(), warmup, total_steps, self.optim.decay)
    }

    /// The optimiser's constants.
    pub fn adamw(&self) -> AdamW {
        let [beta1, beta2] = self.optim.betas;
        AdamW { beta1, beta2, eps: self.optim.eps, weight_decay: self.optim.weight_decay }
    }
}

pub(crate) fn invalid(
    key: &str,
    value: impl std::fmt::Display,
    problem: impl Into<String>,
    advice: impl Into<String>,
) -> ConfigError {
    ConfigError::Invalid {
        key: key.to_owned(),
        value: value.to_string(),
        problem: problem.into(),
        advice: advice.into(),
    }
}
