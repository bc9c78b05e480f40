//! How another crate adds pruners to the whole command line.

use std::sync::Arc;

use dualspeed_model::{PruneError, Registry};
use dualspeed_ops::Backend;

use crate::embedded_tower;

/// Pruners of your own, registered for whichever backend is chosen at run time.
///
/// `()` adds nothing. See `examples/custom_pruner.rs` for a program of 20 lines.
pub trait Extensions: 'static {
    /// Adds pruners to the registry; every command then knows them by name.
    fn pruners<B: Backend>(registry: Registry<B>) -> Registry<B> {
        registry
    }
}

impl Extensions for () {}

/// The registry of the built-in pruners and those of `E`; text-guided ones read prompts by the class names that the
/// embedded vision tower knows.
pub fn registry<B: Backend, E: Extensions>(device: &B::Device) -> Registry<B> {
    let device = device.clone();
    E::pruners(Registry::default()).with_text_tower(move || {
        match embedded_tower::text_tower::<B>(&device) {
            Ok(tower) => Ok(Arc::new(tower)),
            Err(error) => Err(PruneError::Text { problem: format!("{error:#}") }),
        }
    })
}
