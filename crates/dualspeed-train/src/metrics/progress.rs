//! A progress bar on a terminal, fed by Burn's renderer interface.

use std::collections::HashMap;

use burn_train::metric::{MetricDefinition, MetricId};
use burn_train::renderer::{
    EvaluationName, EvaluationProgress, MetricState, MetricsRenderer, MetricsRendererEvaluation,
    MetricsRendererTraining, ProgressType, TrainingProgress,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What a run shows while it trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Progress {
    /// A progress bar on stderr when it is a terminal, nothing otherwise.
    #[default]
    Bar,
    /// Nothing.
    Silent,
    /// Burn's full-screen display on a terminal (feature `tui`); the progress bar without that
    /// feature.
    Tui,
}

/// Renders the step, the losses of both modes and the time left.
pub struct ProgressBarRenderer {
    bar: ProgressBar,
    names: HashMap<MetricId, String>,
    values: HashMap<String, f64>,
}

impl ProgressBarRenderer {
    /// A bar over `total` steps; `shown` false hides it, and indicatif hides it where there is no
    /// terminal.
    pub fn new(total: u64, shown: bool, label: &str) -> Self {
        let bar = progress_bar(total, shown, label);
        Self { bar, names: HashMap::new(), values: HashMap::new() }
    }
}

/// A bar in the style of this crate, for work outside of Burn's trainer.
pub fn progress_bar(total: u64, shown: bool, label: &str) -> ProgressBar {
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(total), target);
    let template = "{prefix:>12} [{bar:24}] {pos}/{len} {elapsed} (left {eta}) {msg}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.set_prefix(label.to_owned());
    bar
}

impl MetricsRendererTraining for ProgressBarRenderer {
    fn update_train(&mut self, state: MetricState) {
        if let MetricState::Numeric(entry, value) = state
            && let Some(name) = self.names.get(&entry.metric_id)
        {
            self.values.insert(name.clone(), value.current());
        }
    }

    fn update_valid(&mut self, _state: MetricState) {}

    fn render_train(&mut self, item: TrainingProgress, _indicators: Vec<ProgressType>) {
        if let Some(step) = item.iteration {
            self.bar.set_position(step as u64);
        }
        let value = |name: &str| self.values.get(name).copied().unwrap_or_default();
        self.bar.set_message(format!(
            "loss fast {:.3} slow {:.3}, {:.0} samples/s",
            value("Loss fast"),
            value("Loss slow"),
            value("Samples per second"),
        ));
    }

    fn render_valid(&mut self, _item: TrainingProgress, _indicators: Vec<ProgressType>) {}

    fn on_train_end(
        &mut self,
        _summary: Option<burn_train::LearnerSummary>,
    ) -> Result<(), Box<dyn core::error::Error>> {
        self.bar.abandon();
        Ok(())
    }
}

impl MetricsRendererEvaluation for ProgressBarRenderer {
    fn update_test(&mut self, _name: EvaluationName, _state: MetricState) {}

    fn render_test(&mut self, _item: EvaluationProgress, _indicators: Vec<ProgressType>) {}
}

impl MetricsRenderer for ProgressBarRenderer {
    fn manual_close(&mut self) {}

    fn register_metric(&mut self, definition: MetricDefinition) {
        self.names.insert(definition.metric_id, definition.name);
    }
}
