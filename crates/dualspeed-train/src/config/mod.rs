//! The configuration of a run: plain data, TOML on disk, checked once.

mod features;
mod load;
mod resume;
mod sections;
mod source;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use dualspeed_model::{Compat, LlavaConfig, ObjectiveSpec, PrunerSpec, Trainable, View};
use serde::{Deserialize, Serialize};

pub use features::{CacheMode, FeaturesConfig};
use load::check_removed;
pub use load::{apply_override, from_value, parse_toml, read_toml};
pub use resume::ResumeChanges;
pub use sections::{
    BatchConfig, CheckpointConfig, DistillConfig, InitConfig, MemoryConfig, ModeConfig,
    ObjectiveConfig, OptimConfig, PruningConfig, RecomputeMode, Stage, ValidationConfig,
};
pub use source::{DataConfig, LlavaJsonSection, SourceConfig};

use crate::error::ConfigError;
use crate::lr_schedule::WarmupSchedule;
use crate::mode::ScheduleSpec;
use crate::optim::{AdamW, GroupRates};

/// One stage of training. A two-stage recipe is two of these; a key left out follows the stage.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainConfig {
    /// Seed of everything: initialisation, sampling, modes, dropout.
    pub seed: u64,
    /// What is trained.
    pub stage: Stage,
    /// `official`: the teacher runs with LoRA dropout, and the newline embedding at the base rate. The mode stays one per
    /// optimiser step: the published draw per micro-batch and rank makes ranks disagree. The published count, `int((1 - 0.9) *
    /// 576) = 57`, is `pruning.pruner.rounding = "trunc"`, the default. Text of conversations from disk is cut at images, keeps the
    /// white space at its ends, and `plain` ends in a newline (`TextTokenizer::official`).
    pub compat: Compat,
    /// Whether the vision tower is trained too, with `optim.vision_tower_lr`; features cannot be cached then.
    pub train_vision_tower: bool,
    /// Optimiser steps; give this or `epochs`.
    pub steps: Option<u64>,
    /// Passes over the training data; 1 when neither this nor `steps` is given.
    pub epochs: Option<u64>,
    /// The run directory whose model this run starts from (stage 2 after stage 1), or a published checkpoint, or a language model
    /// with `init.vision_tower`; left out: fresh weights.
    pub init_from: Option<PathBuf>,
    /// What is put on that checkpoint.
    #[serde(skip_serializing_if = "InitConfig::is_empty")]
    pub init: InitConfig,
    /// The architecture.
    pub model: LlavaConfig,
    /// The data sets.
    pub data: DataConfig,
    /// Fast and slow steps.
    pub mode: ModeConfig,
    /// Which visual tokens fast steps keep.
    pub pruning: PruningConfig,
    /// What a step minimises.
    pub objective: ObjectiveConfig,
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
    /// Metrics beside the usual ones, by the names that other crates register them by.
    pub metrics: Vec<String>,
}

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
        check_removed(&value)?;
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
        self.checkpoint.validate(&self.validation)?;
        if self.train_vision_tower && self.data.features.is_cached() {
            let problem = "its features change with every step, so they cannot be cached";
            let advice = "set data.features.cache = \"none\", or leave the tower frozen";
            return Err(invalid("train_vision_tower", true, problem, advice));
        }
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

    /// The same config with every value written out that is otherwise left to the stage: what a run uses, and what its
    /// directory holds. A run from that file is the same run.
    pub fn effective(&self) -> Self {
        let mut config = self.clone();
        if config.steps.is_none() {
            config.epochs = Some(config.epochs.unwrap_or(1));
        }
        config.mode.schedule = Some(self.schedule().name);
        let rates = self.group_rates();
        config.optim.lr = Some(rates.base);
        config.optim.projector_lr = Some(rates.projector);
        config.optim.newline_lr = Some(rates.newline);
        config.optim.isolator_lr = Some(rates.isolator);
        config.optim.vision_tower_lr = Some(rates.vision_tower);
        config.data.workers = Some(config.data.worker_count());
        for data in [Some(&mut config.data.train), config.data.valid.as_mut()].into_iter().flatten()
        {
            if let Some(json) = &mut data.llava_json {
                (json.template, json.fit) = (Some(json.template()), Some(json.fit()));
            }
        }
        config
    }

    /// The schedule of modes; stage 1 is fast-only unless the config says otherwise, as published.
    pub fn schedule(&self) -> ScheduleSpec {
        let published = match self.stage {
            Stage::Pretrain => "always_fast",
            Stage::Finetune | Stage::Single => "bernoulli",
        };
        ScheduleSpec {
            name: self.mode.schedule.clone().unwrap_or_else(|| published.into()),
            seed: self.seed,
            slow_mode_ratio: self.mode.slow_mode_ratio,
            every: self.mode.every,
            options: self.mode.options.clone(),
        }
    }

    /// The objective of the steps.
    pub fn objective(&self) -> ObjectiveSpec {
        ObjectiveSpec {
            name: self.objective.name.clone(),
            lambda: self.distill.lambda,
            tau: self.distill.tau,
            options: self.objective.options.clone(),
        }
    }

    /// The parts of the model that take gradients: stage 1 projector and isolator; stage 2 also the adapters where the model has
    /// them, else the decoder; from scratch everything but the tower, which is trained where the config says so.
    pub fn trainable(&self) -> Trainable {
        let of_stage = match self.stage {
            Stage::Pretrain => Trainable::pretrain(),
            Stage::Finetune if self.model.lora.is_some() => Trainable::finetune_lora(),
            Stage::Finetune | Stage::Single => Trainable::full(),
        };
        Trainable { vision_tower: self.train_vision_tower, ..of_stage }
    }

    /// Visual tokens a fast step keeps of a full tile of `n` (an image is one tile unless the model takes images of any resolution); at
    /// least one.
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
        View::Pruned { keep: self.keep_count(n), isolator: self.model.isolator_length > 0 }
    }

    /// The learning rate of every group at the peak of the schedule: what `optim` says, else the published rates of the stage. Base:
    /// 1e-3 in stage 1 and from scratch, 2e-4 for LoRA, 2e-5 for full tuning. Projector: 2e-5 in stage 2, else the base rate.
    pub fn group_rates(&self) -> GroupRates {
        let (optim, finetune) = (&self.optim, self.stage == Stage::Finetune);
        let base = optim.lr.unwrap_or(match (finetune, &self.model.lora) {
            (false, _) => 1e-3,
            (true, Some(_)) => 2e-4,
            (true, None) => 2e-5,
        });
        let projector = optim.projector_lr.unwrap_or(if finetune { 2e-5 } else { base });
        let newline = match self.compat {
            Compat::Official => base,
            Compat::Sane => projector,
        };
        GroupRates {
            base,
            projector,
            newline: optim.newline_lr.unwrap_or(newline),
            isolator: optim.isolator_lr.unwrap_or(projector),
            vision_tower: optim.vision_tower_lr.unwrap_or(2e-6),
        }
    }

    /// Warm-up and decay over `total_steps`.
    pub fn lr_schedule(&self, total_steps: u64) -> WarmupSchedule {
        let warmup = (self.optim.warmup_ratio * total_steps as f64).ceil() as u64;
        WarmupSchedule::new(self.group_rates().base, warmup, total_steps, self.optim.decay)
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
