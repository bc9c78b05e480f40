//! Objectives by name.

use dualspeed_core::{Options, Registry};
use dualspeed_ops::Backend;

use super::{DualSpeedObjective, Objective};

/// An objective as configurations name it.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectiveSpec {
    /// Name in the registry.
    pub name: String,
    /// The weight of self-distillation; 0 leaves the teacher out.
    pub lambda: f64,
    /// The temperature of self-distillation.
    pub tau: f64,
    /// The objective's own options.
    pub options: Options,
}

impl Default for ObjectiveSpec {
    fn default() -> Self {
        Self {
            name: DualSpeedObjective::NAME.into(),
            lambda: 1.0,
            tau: 1.0,
            options: Options::default(),
        }
    }
}

/// Makers of objectives by name.
pub type ObjectiveRegistry<B> = Registry<ObjectiveSpec, dyn Objective<B>>;

/// The objectives of this crate.
pub fn builtin<B: Backend>() -> ObjectiveRegistry<B> {
    let registry: ObjectiveRegistry<B> = Registry::new("objective");
    registry.with(DualSpeedObjective::NAME, |spec: &ObjectiveSpec| {
        spec.options.expect(&[])?;
        Ok(Box::new(DualSpeedObjective { lambda: spec.lambda, tau: spec.tau }))
    })
}
