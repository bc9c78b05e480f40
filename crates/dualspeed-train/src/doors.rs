//! What other crates bring to a training run, by name: pruners, objectives, mode schedules, metrics.

use dualspeed_model::Registry;
use dualspeed_model::objective::{ObjectiveRegistry, registry::builtin};
use dualspeed_ops::AutodiffBackend;

use crate::metrics::{MetricRegistry, metric_registry};
use crate::mode::{ScheduleRegistry, schedule_registry};

/// Registries of everything that a run's config names; values, not global state.
#[derive(Clone)]
pub struct Doors<B: AutodiffBackend> {
    /// Pruners.
    pub pruners: Registry<B>,
    /// Objectives, for training.
    pub objectives: ObjectiveRegistry<B>,
    /// The same objectives, for validation.
    pub valid_objectives: ObjectiveRegistry<B::InnerBackend>,
    /// Mode schedules.
    pub schedules: ScheduleRegistry,
    /// Metrics beside the usual ones.
    pub metrics: MetricRegistry,
}

impl<B: AutodiffBackend> Default for Doors<B> {
    /// What these crates bring themselves.
    fn default() -> Self {
        Self {
            pruners: Registry::default(),
            objectives: builtin(),
            valid_objectives: builtin(),
            schedules: schedule_registry(),
            metrics: metric_registry(),
        }
    }
}
