//! What a step reports: the record, its running totals, Burn metrics over it, and the JSONL logs.

mod burn_metrics;
mod custom;
mod jsonl;
mod progress;
mod record;
mod validation;

pub(crate) use burn_metrics::{NoMetricLogger, StepMetric, step_metrics};
pub use custom::{MetricRegistry, RecordMetric, RunMetrics, metric_registry};
pub use jsonl::read_metrics;
pub(crate) use jsonl::{JsonlLog, read_lines};
pub use progress::{Progress, ProgressBarRenderer, progress_bar};
pub use record::{SkippedStep, StepRecord, StepTime, TimeSplit, Totals};
pub(crate) use validation::{ValidationLog, ValidationRecord};
