//! A metric over the step record: the share of the language model's work that pruning saves.

use dualspeed::prelude::*;

/// Share of the unpruned sequences' tokens that the language model did not see, in percent: 0 on slow steps.
#[derive(Debug)]
pub struct TokensSaved;

impl RecordMetric for TokensSaved {
    fn name(&self) -> &str {
        "tokens_saved"
    }

    fn unit(&self) -> Option<&str> {
        Some("%")
    }

    fn higher_is_better(&self) -> bool {
        true
    }

    fn value(&self, record: &StepRecord) -> (f64, usize) {
        let share = record.tokens as f64 / record.tokens_unpruned.max(1) as f64;
        (100.0 * (1.0 - share), record.samples)
    }
}
