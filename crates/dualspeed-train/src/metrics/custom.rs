//! Metrics over the step record, by name: those that a config asks for beside the usual ones.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

use dualspeed_core::{Registry, RegistryError};

use super::StepRecord;

/// A figure of every step that changed the model: shown while training, and written into the records under `metrics`. It is
/// not asked about steps that were skipped, whose figures may be NaN.
pub trait RecordMetric: Debug + Send + Sync {
    /// The name in configurations, records and displays.
    fn name(&self) -> &str;

    /// Its unit, for displays.
    fn unit(&self) -> Option<&str> {
        None
    }

    /// Whether more is better.
    fn higher_is_better(&self) -> bool {
        false
    }

    /// The value in a step, and the number of elements it is a mean of: 0 where the step has none. What is not finite is
    /// left out of records.
    fn value(&self, record: &StepRecord) -> (f64, usize);
}

/// Makers of metrics by name.
pub type MetricRegistry = Registry<(), dyn RecordMetric>;

/// Makes a registry without metrics: the usual ones are in every run.
pub fn metric_registry() -> MetricRegistry {
    Registry::new("metric")
}

/// The metrics that a run's config names.
#[derive(Clone, Debug, Default)]
pub struct RunMetrics(Vec<Arc<dyn RecordMetric>>);

impl RunMetrics {
    /// Builds metrics by name.
    ///
    /// # Errors
    /// [`RegistryError`] for the first name that nobody registered.
    pub(crate) fn build(
        names: &[String],
        registry: &MetricRegistry,
    ) -> Result<Self, RegistryError> {
        let metrics = names.iter().map(|name| registry.build(name, &()).map(Arc::from));
        metrics.collect::<Result<_, _>>().map(Self)
    }

    /// The metrics.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<dyn RecordMetric>> {
        self.0.iter()
    }

    /// Values in a step, of the metrics that have one: what is no number has no place in a record.
    pub(crate) fn values(&self, record: &StepRecord) -> BTreeMap<String, f64> {
        let values = self.0.iter().map(|metric| (metric.name().to_owned(), metric.value(record)));
        values
            .filter(|(_, (value, count))| *count > 0 && value.is_finite())
            .map(|(name, (value, _))| (name, value))
            .collect()
    }
}
