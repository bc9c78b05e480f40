//! What a checkpoint holds beside tensors.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::FORMAT;
use crate::metrics::Totals;
use crate::mode::ScheduleState;

/// What a checkpoint holds beside tensors.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CheckpointState {
    /// The version of the layout.
    pub format: u32,
    /// Optimiser steps done; the next step to run.
    pub step: u64,
    /// Optimiser steps of the whole run, as it was planned.
    pub total_steps: u64,
    /// The config of the run, as JSON.
    pub config: serde_json::Value,
    /// The fingerprint of the training data as the run began with it.
    pub data: String,
    /// Running sums of the metrics.
    pub totals: Totals,
    /// How often each parameter was updated, by path.
    pub updates: BTreeMap<String, u64>,
    /// What the mode schedule has seen.
    pub schedule: ScheduleState,
}

impl Default for CheckpointState {
    /// Nothing done, in this version's format.
    fn default() -> Self {
        Self {
            format: FORMAT,
            step: 0,
            total_steps: 0,
            config: serde_json::Value::Null,
            data: String::new(),
            totals: Totals::default(),
            updates: BTreeMap::new(),
            schedule: ScheduleState::default(),
        }
    }
}
