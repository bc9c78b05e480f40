//! How another crate adds parts of its own to the whole command line.

use std::sync::Arc;

use dualspeed_data::{SourceRegistry, source_registry};
use dualspeed_model::objective::ObjectiveRegistry;
use dualspeed_model::objective::registry::builtin;
use dualspeed_model::{Parts, PruneError, Registry};
use dualspeed_ops::{AutodiffBackend, Backend};
use dualspeed_train::Doors;
use dualspeed_train::metrics::{MetricRegistry, metric_registry};
use dualspeed_train::mode::{ScheduleRegistry, schedule_registry};

use crate::embedded_tower;

/// Parts of your own, registered by name for whichever backend is chosen at run time; every command then knows them.
///
/// `()` adds nothing. See `examples/custom_pruner.rs` for a program of 20 lines, `docs/extending.md` for every kind of part, and
/// `tests/outside` for one of each.
pub trait Extensions: 'static {
    /// Adds pruners.
    fn pruners<B: Backend>(registry: Registry<B>) -> Registry<B> {
        registry
    }

    /// Adds objectives of training.
    fn objectives<B: Backend>(registry: ObjectiveRegistry<B>) -> ObjectiveRegistry<B> {
        registry
    }

    /// Adds schedules of fast and slow steps.
    fn schedules(registry: ScheduleRegistry) -> ScheduleRegistry {
        registry
    }

    /// Adds metrics over the step record.
    fn metrics(registry: MetricRegistry) -> MetricRegistry {
        registry
    }

    /// Adds data sets.
    fn sources(registry: SourceRegistry) -> SourceRegistry {
        registry
    }

    /// Adds vision towers and projectors.
    fn parts<B: AutodiffBackend>(parts: Parts) -> Parts {
        parts
    }
}

impl Extensions for () {}

/// The built-in pruners and those of `E`; text-guided ones read prompts by the class names that the embedded vision tower
/// knows.
pub fn registry<B: Backend, E: Extensions>(device: &B::Device) -> Registry<B> {
    let device = device.clone();
    E::pruners(Registry::default()).with_text_tower(move || {
        match embedded_tower::text_tower::<B>(&device) {
            Ok(tower) => Ok(Arc::new(tower)),
            Err(error) => Err(PruneError::Text { problem: format!("{error:#}") }),
        }
    })
}

/// Makes the registry of the data sets of `E`.
pub fn sources<E: Extensions>() -> SourceRegistry {
    E::sources(source_registry())
}

/// The vision towers and projectors of `E`.
pub fn parts<B: AutodiffBackend, E: Extensions>() -> Parts {
    E::parts::<B>(Parts::default())
}

/// Everything that the configuration of a training run may name: built in, and of `E`.
pub fn doors<B: AutodiffBackend, E: Extensions>(device: &B::Device) -> Doors<B> {
    Doors {
        pruners: registry::<B, E>(device),
        objectives: E::objectives(builtin()),
        valid_objectives: E::objectives(builtin()),
        schedules: E::schedules(schedule_registry()),
        metrics: E::metrics(metric_registry()),
    }
}
