//! The step's figures as Burn metrics.
//!
//! Burn has no "absent" value, and its own state divides 0 by 0. A metric of the mode that did not
//! run therefore reports its last value with count 0, which no mean counts.

use std::sync::Arc;

use burn_train::logger::MetricLogger;
use burn_train::metric::store::{EpochSummary, MetricsUpdate, Split};
use burn_train::metric::{
    Metric, MetricAttributes, MetricDefinition, MetricMetadata, MetricName, Numeric,
    NumericAttributes, NumericEntry, SerializedEntry, format_float,
};

use super::StepRecord;
use super::custom::RecordMetric;
use crate::mode::Mode;

/// One figure of the step record as a Burn metric.
#[derive(Clone, Debug)]
pub struct StepMetric {
    name: MetricName,
    metric: Arc<dyn RecordMetric>,
    sum: f64,
    count: usize,
    current: f64,
    current_count: usize,
}

impl StepMetric {
    /// Burn's view of a metric over the step record.
    pub(crate) fn new(metric: Arc<dyn RecordMetric>) -> Self {
        let name = Arc::new(metric.name().to_owned());
        Self { name, metric, sum: 0.0, count: 0, current: 0.0, current_count: 0 }
    }
}

/// A metric of this crate: a figure of the record and the number of elements it is a mean of.
#[derive(Clone, Copy, Debug)]
struct Figure {
    name: &'static str,
    unit: Option<&'static str>,
    higher_is_better: bool,
    value: fn(&StepRecord) -> (f64, usize),
}

impl RecordMetric for Figure {
    fn name(&self) -> &str {
        self.name
    }
    fn unit(&self) -> Option<&str> {
        self.unit
    }
    fn higher_is_better(&self) -> bool {
        self.higher_is_better
    }
    fn value(&self, record: &StepRecord) -> (f64, usize) {
        (self.value)(record)
    }
}

/// The metrics of every run.
pub(crate) fn step_metrics() -> Vec<StepMetric> {
    let metric = |name, unit, higher_is_better, value| {
        StepMetric::new(Arc::new(Figure { name, unit, higher_is_better, value }))
    };
    vec![
        metric("Loss fast", None, false, |r| of_mode(r, Mode::Fast, r.loss)),
        metric("Loss slow", None, false, |r| of_mode(r, Mode::Slow, r.loss)),
        metric("Token accuracy fast", Some("%"), true, |r| {
            of_mode(r, Mode::Fast, 100.0 * r.accuracy)
        }),
        metric("Token accuracy slow", Some("%"), true, |r| {
            of_mode(r, Mode::Slow, 100.0 * r.accuracy)
        }),
        metric("KL", None, false, |r| (r.kl, r.kl_tokens)),
        metric("Slow steps", Some("%"), true, |r| {
            (if r.mode == Mode::Slow { 100.0 } else { 0.0 }, 1)
        }),
        metric("Visual tokens kept", Some("%"), true, |r| {
            let share = r.visual_tokens_kept as f64 / r.visual_tokens.max(1) as f64;
            (100.0 * share, r.visual_tokens)
        }),
        metric("Gradient norm", None, false, |r| (r.grad_norm, 1)),
        metric("Samples per second", Some("1/s"), true, |r| (r.time.samples_per_second, 1)),
        metric("Tokens per second", Some("1/s"), true, |r| (r.time.tokens_per_second, 1)),
        metric("Effective tokens per second", Some("1/s"), true, |r| {
            (r.time.effective_tokens_per_second, 1)
        }),
        metric("Time data", Some("s"), false, |r| (r.time.split.data, 1)),
        metric("Time vision", Some("s"), false, |r| (r.time.split.vision, 1)),
        metric("Time prune", Some("s"), false, |r| (r.time.split.prune, 1)),
        metric("Time language model", Some("s"), false, |r| (r.time.split.llm, 1)),
        metric("Time optimiser", Some("s"), false, |r| (r.time.split.optimiser, 1)),
        metric("ETA", Some("s"), false, |r| (r.time.eta_seconds, 1)),
    ]
}

fn of_mode(record: &StepRecord, mode: Mode, value: f64) -> (f64, usize) {
    if record.mode == mode { (value, record.supervised_tokens) } else { (0.0, 0) }
}

impl Metric for StepMetric {
    type Input = StepRecord;

    fn name(&self) -> MetricName {
        self.name.clone()
    }

    fn attributes(&self) -> MetricAttributes {
        let unit = self.metric.unit().map(str::to_owned);
        NumericAttributes { unit, higher_is_better: self.metric.higher_is_better() }.into()
    }

    fn update(&mut self, item: &StepRecord, _metadata: &MetricMetadata) -> SerializedEntry {
        let (value, count) = self.metric.value(item);
        self.current_count = count;
        if count > 0 {
            self.current = value;
            self.sum += value * count as f64;
            self.count += count;
        }
        let unit = self.metric.unit().unwrap_or_default();
        let mean = format_float(self.running_value().current(), 3);
        let formatted =
            format!("mean {mean} {unit} - step {} {unit}", format_float(self.current, 3));
        SerializedEntry::new(formatted, self.value().serialize())
    }

    fn clear(&mut self) {
        (self.sum, self.count, self.current_count) = (0.0, 0, 0);
    }
}

impl Numeric for StepMetric {
    fn value(&self) -> NumericEntry {
        NumericEntry::Aggregated { aggregated_value: self.current, count: self.current_count }
    }

    fn running_value(&self) -> NumericEntry {
        let mean = if self.count == 0 { 0.0 } else { self.sum / self.count as f64 };
        NumericEntry::Aggregated { aggregated_value: mean, count: self.count }
    }
}

/// Stands in for Burn's file logger: the strategy writes `metrics.jsonl`, which knows the step.
#[derive(Debug)]
pub(crate) struct NoMetricLogger;

impl MetricLogger for NoMetricLogger {
    fn log(&mut self, _update: MetricsUpdate, _epoch: usize, _split: &Split) {}

    fn read_numeric(
        &mut self,
        _name: &str,
        _epoch: usize,
        _split: &Split,
    ) -> Result<Vec<NumericEntry>, String> {
        Ok(Vec::new())
    }

    fn log_metric_definition(&mut self, _definition: MetricDefinition) {}

    fn log_epoch_summary(&mut self, _summary: EpochSummary) {}
}

#[cfg(test)]
mod tests {
    use burn::data::dataloader::Progress;

    use super::*;

    fn record(mode: Mode) -> StepRecord {
        StepRecord {
            mode,
            lr: 1.0,
            loss: 2.0,
            ce: 2.0,
            accuracy: 0.5,
            supervised_tokens: 4,
            samples: 2,
            tokens: 10,
            tokens_unpruned: 20,
            visual_tokens: 10,
            visual_tokens_kept: 1,
            grad_norm: 1.0,
            ..StepRecord::default()
        }
    }

    #[test]
    fn the_mode_that_did_not_run_counts_nothing_and_is_never_nan() {
        let metadata = MetricMetadata {
            progress: Progress::new(1, 1),
            global_progress: Progress::new(1, 1),
            iteration: None,
            lr: None,
        };
        for mut metric in step_metrics() {
            metric.update(&record(Mode::Fast), &metadata);
            for entry in [metric.value(), metric.running_value()] {
                assert!(entry.current().is_finite(), "{}", metric.name());
            }
            if ["Loss slow", "Token accuracy slow", "KL"].contains(&metric.name().as_str()) {
                assert!(matches!(
                    metric.running_value(),
                    NumericEntry::Aggregated { count: 0, .. }
                ));
            }
        }
    }
}
