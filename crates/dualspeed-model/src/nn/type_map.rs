//! Values found by their type.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

/// One value of each of several types. A part from another crate is put in once for each backend of the program, as
/// `Arc<dyn Part<B>>`, and a module finds the one of its own backend: a module cannot hold a trait object of a backend that
/// changes when gradients are taken off it.
#[derive(Clone, Default)]
pub struct TypeMap(HashMap<TypeId, Arc<dyn Any + Send + Sync>>);

impl TypeMap {
    /// The same with a value, which replaces an earlier one of its type.
    pub fn with<T: Any + Send + Sync>(mut self, value: T) -> Self {
        self.0.insert(TypeId::of::<T>(), Arc::new(value));
        self
    }

    /// The value of a type.
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.get(&TypeId::of::<T>())?.downcast_ref()
    }
}

impl fmt::Debug for TypeMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TypeMap({} types)", self.0.len())
    }
}
