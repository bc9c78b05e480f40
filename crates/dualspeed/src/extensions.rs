//! How another crate adds pruners to the whole command line.

use dualspeed_model::Registry;
use dualspeed_ops::Backend;

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

/// The built-in pruners and those of `E`.
pub fn registry<B: Backend, E: Extensions>() -> Registry<B> {
    E::pruners(Registry::default())
}
