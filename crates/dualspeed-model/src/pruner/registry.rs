//! Pruners by name.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use dualspeed_ops::Backend;
use serde::{Deserialize, Serialize};

use super::{
    AvgPool2d, DivPrune, FasterVlm, NoPruning, PruneError, Pruner, RandomPruner, Rounding,
    UniformPruner, keep_count,
};

/// A pruner as configurations name it; backend-free, so that anything may hold it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PrunerSpec {
    /// Name in the registry.
    pub name: String,
    /// How a fractional number of kept tokens becomes a count.
    pub rounding: Rounding,
}

impl Default for PrunerSpec {
    fn default() -> Self {
        Self::new("divprune")
    }
}

impl PrunerSpec {
    /// The pruner of that name with the published rounding.
    pub fn new(name: impl Into<String>) -> Self {
        Self { name: name.into(), rounding: Rounding::default() }
    }

    /// How many of `n` tokens stay at a pruning ratio.
    pub fn keep_count(&self, n: usize, pruning_ratio: f64) -> usize {
        keep_count(n, pruning_ratio, self.rounding)
    }
}

/// Makes a pruner from its specification.
pub type PrunerFactory<B> =
    Arc<dyn Fn(&PrunerSpec) -> Result<Box<dyn Pruner<B>>, PruneError> + Send + Sync>;

/// Factories by name. A value, not global state: add your own with [`Registry::with`].
#[derive(Clone)]
pub struct Registry<B: Backend> {
    factories: BTreeMap<String, PrunerFactory<B>>,
}

impl<B: Backend> Default for Registry<B> {
    fn default() -> Self {
        Self::builtin()
    }
}

impl<B: Backend> fmt::Debug for Registry<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("names", &self.names()).finish()
    }
}

impl<B: Backend> Registry<B> {
    /// The pruners of this crate: one line each.
    pub fn builtin() -> Self {
        Self { factories: BTreeMap::new() }
            .with("none", |_| Ok(Box::new(NoPruning)))
            .with("random", |_| Ok(Box::new(RandomPruner)))
            .with("uniform", |_| Ok(Box::new(UniformPruner)))
            .with("avgpool2d", |_| Ok(Box::new(AvgPool2d)))
            .with("divprune", |_| Ok(Box::new(DivPrune)))
            .with("fastervlm", |_| Ok(Box::new(FasterVlm)))
    }

    /// Adds or replaces a pruner.
    pub fn with(
        mut self,
        name: impl Into<String>,
        factory: impl Fn(&PrunerSpec) -> Result<Box<dyn Pruner<B>>, PruneError> + Send + Sync + 'static,
    ) -> Self {
        self.factories.insert(name.into(), Arc::new(factory));
        self
    }

    /// Known names, sorted.
    pub fn names(&self) -> Vec<String> {
        self.factories.keys().cloned().collect()
    }

    /// Builds a pruner.
    ///
    /// # Errors
    /// [`PruneError::Unknown`] with the nearest known name, or what the factory says.
    pub fn build(&self, spec: &PrunerSpec) -> Result<Box<dyn Pruner<B>>, PruneError> {
        match self.factories.get(&spec.name) {
            Some(factory) => factory(spec),
            None => {
                let known = self.names();
                let similarity = |name: &String| strsim::jaro_winkler(name, &spec.name);
                let nearest = known
                    .iter()
                    .filter(|name| similarity(name) > 0.7)
                    .max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
                    .cloned();
                Err(PruneError::Unknown { name: spec.name.clone(), nearest, known })
            }
        }
    }
}
