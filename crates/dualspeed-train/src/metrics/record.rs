//! The record of one optimiser step, and the sums over all of them.

use std::collections::BTreeMap;

use dualspeed_model::ParamGroup;
use serde::{Deserialize, Deserializer, Serialize};

use crate::mode::Mode;

/// Seconds spent in the parts of training.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimeSplit {
    /// Waiting for batches.
    pub data: f64,
    /// Vision tower or feature upload, and projector.
    pub vision: f64,
    /// Selecting visual tokens.
    pub prune: f64,
    /// Language model and losses, forward and backward; the projector's backward is in here too.
    pub llm: f64,
    /// Accumulation, clipping, AdamW.
    pub optimiser: f64,
}

impl TimeSplit {
    /// The sum of the parts.
    pub fn total(&self) -> f64 {
        self.data + self.vision + self.prune + self.llm + self.optimiser
    }

    pub(crate) fn add(&mut self, other: &TimeSplit) {
        self.data += other.data;
        self.vision += other.vision;
        self.prune += other.prune;
        self.llm += other.llm;
        self.optimiser += other.optimiser;
    }
}

/// Everything of a record that depends on the clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepTime {
    /// Seconds of this step, from the request for its batch to the end of its update.
    pub step_seconds: f64,
    /// The parts of it.
    #[serde(flatten)]
    pub split: TimeSplit,
    /// Seconds of training since step 0, interruptions left out.
    pub train_seconds: f64,
    /// Samples per second of this step.
    pub samples_per_second: f64,
    /// Tokens the language model saw per second (after pruning, padding left out).
    pub tokens_per_second: f64,
    /// Tokens of the unpruned sequences per second: what the user gets.
    pub effective_tokens_per_second: f64,
    /// Expected seconds to the last step.
    pub eta_seconds: f64,
    /// GiB taken from the device after the step, by this program and others, where the backend can tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_memory_gib: Option<f64>,
}

/// Why a step changed nothing, and which samples it was made of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SkippedStep {
    /// What was not finite.
    pub reason: String,
    /// The ids of the samples of the step.
    pub samples: Vec<String>,
}

/// One line of `metrics.jsonl`. Without `time` it is the same in every run of the same seed. The default is a record of nothing:
/// every metric of it has count 0.
///
/// JSON has no number that is not finite: such a figure is `null` in the file, is read back as NaN, and is named in
/// `non_finite`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// The optimiser step, from 0.
    pub step: u64,
    /// The mode it ran in.
    pub mode: Mode,
    /// The base learning rate.
    pub lr: f64,
    /// The learning rate of every group that is trained.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub group_lr: BTreeMap<ParamGroup, f64>,
    /// `(sum ce + lambda sum kl) / n` over the `n` supervised tokens of the window.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Cross entropy per supervised token.
    #[serde(deserialize_with = "null_is_nan")]
    pub ce: f64,
    /// KL(teacher || student) * tau^2 per distilled token; 0 when none was distilled.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl: f64,
    /// Tokens the KL was taken over: 0 on fast steps.
    pub kl_tokens: usize,
    /// Share of supervised tokens predicted right.
    #[serde(deserialize_with = "null_is_nan")]
    pub accuracy: f64,
    /// Other parts of the objective by name, per token of theirs.
    #[serde(
        default,
        skip_serializing_if = "BTreeMap::is_empty",
        deserialize_with = "nulls_are_nan"
    )]
    pub parts: BTreeMap<String, f64>,
    /// Values of the metrics that the config names; none on a step that was skipped.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metrics: BTreeMap<String, f64>,
    /// Supervised tokens of the window.
    pub supervised_tokens: usize,
    /// Samples of the window.
    pub samples: usize,
    /// Ids of samples of the window that could not be used and were left out (`data.on_error = "skip"`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skipped_samples: Vec<String>,
    /// Tokens the language model saw (student view, padding left out).
    pub tokens: usize,
    /// Tokens of the same samples without pruning or isolator.
    pub tokens_unpruned: usize,
    /// Visual tokens the images have.
    pub visual_tokens: usize,
    /// Visual tokens the language model saw.
    pub visual_tokens_kept: usize,
    /// Global gradient norm before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub grad_norm: f64,
    /// Share of slow steps so far.
    pub slow_share: f64,
    /// Set where the step changed nothing, because its loss, its gradients or its update were not finite.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<SkippedStep>,
    /// Steps that were skipped so far.
    #[serde(default)]
    pub skipped_steps: u64,
    /// Figures of this record that are `NaN`, `inf` or `-inf`, by key.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub non_finite: BTreeMap<String, String>,
    /// Everything that depends on the clock.
    pub time: StepTime,
}

impl Default for StepRecord {
    fn default() -> Self {
        Self {
            step: 0,
            mode: Mode::Fast,
            lr: 0.0,
            group_lr: BTreeMap::new(),
            loss: 0.0,
            ce: 0.0,
            kl: 0.0,
            kl_tokens: 0,
            accuracy: 0.0,
            parts: BTreeMap::new(),
            metrics: BTreeMap::new(),
            supervised_tokens: 0,
            samples: 0,
            skipped_samples: Vec::new(),
            tokens: 0,
            tokens_unpruned: 0,
            visual_tokens: 0,
            visual_tokens_kept: 0,
            grad_norm: 0.0,
            slow_share: 0.0,
            skipped: None,
            skipped_steps: 0,
            non_finite: BTreeMap::new(),
            time: StepTime::default(),
        }
    }
}

fn null_is_nan<'de, D: Deserializer<'de>>(value: D) -> Result<f64, D::Error> {
    Ok(Option::deserialize(value)?.unwrap_or(f64::NAN))
}

fn nulls_are_nan<'de, D: Deserializer<'de>>(value: D) -> Result<BTreeMap<String, f64>, D::Error> {
    let values = BTreeMap::<String, Option<f64>>::deserialize(value)?;
    Ok(values.into_iter().map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect())
}

/// Sums over all steps, kept in checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Optimiser steps, skipped ones included.
    pub steps: u64,
    /// Those in slow mode.
    pub slow_steps: u64,
    /// Those that were skipped.
    pub skipped_steps: u64,
    /// Those that were skipped since the last that was not.
    pub skipped_in_a_row: u64,
    /// Samples.
    pub samples: u64,
    /// Samples that were left out, counted each time.
    pub skipped_samples: u64,
    /// Tokens the language model saw.
    pub tokens: u64,
    /// Tokens of the unpruned sequences.
    pub tokens_unpruned: u64,
    /// Supervised tokens.
    pub supervised_tokens: u64,
    /// Seconds of training: the steps, without checkpoints, validation and start-up.
    pub train_seconds: f64,
    /// The parts of `train_seconds`.
    pub time: TimeSplit,
}

impl Totals {
    /// Share of slow steps; 0 before the first step.
    pub fn slow_share(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.slow_steps as f64 / self.steps as f64 }
    }

    pub(crate) fn count(&mut self, record: &StepRecord) {
        self.steps += 1;
        self.slow_steps += u64::from(record.mode == Mode::Slow);
        let skipped = record.skipped.is_some();
        self.skipped_steps += u64::from(skipped);
        self.skipped_in_a_row = if skipped { self.skipped_in_a_row + 1 } else { 0 };
        self.samples += record.samples as u64;
        self.skipped_samples += record.skipped_samples.len() as u64;
        self.tokens += record.tokens as u64;
        self.tokens_unpruned += record.tokens_unpruned as u64;
        self.supervised_tokens += record.supervised_tokens as u64;
    }
}
