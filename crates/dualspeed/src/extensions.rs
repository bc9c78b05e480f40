//! How another crate adds pruners and data sets to the whole command line.

use std::sync::Arc;

use dualspeed_data::{SourceRegistry, source_registry};
use dualspeed_model::{PruneError, Registry};
use dualspeed_ops::Backend;

use crate::tower;

/// Pruners and data sets of your own, registered for whichever backend is chosen at run time.
///
/// `()` adds nothing. See `examples/custom_pruner.rs` for a program of 20 lines.
pub trait Extensions: 'static {
    /// Adds pruners to the registry; every command then knows them by name.
    fn pruners<B: Backend>(registry: Registry<B>) -> Registry<B> {
        registry
    }

    /// Adds data sets to the registry; configurations then name them in `data.train.source`.
    fn sources(registry: SourceRegistry) -> SourceRegistry {
        registry
    }
}

impl Extensions for () {}

/// Makes the registry of the data sets of `E`.
pub fn sources<E: Extensions>() -> SourceRegistry {
    E::sources(source_registry())
}

/// The built-in pruners and those of `E`; text-guided ones read questions by the embedded tower's names.
pub fn registry<B: Backend, E: Extensions>(device: &B::Device) -> Registry<B> {
    let device = device.clone();
    E::pruners(Registry::default()).with_text_tower(move || match tower::names::<B>(&device) {
        Ok(names) => Ok(Arc::new(names)),
        Err(error) => Err(PruneError::Text { problem: format!("{error:#}") }),
    })
}
