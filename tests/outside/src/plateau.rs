//! A schedule that reacts to the loss: a slow step whenever the fast loss has stopped falling.

use dualspeed::prelude::*;
use serde_json::{Value, json};

/// Fast until the exponential mean of the fast steps' loss has not fallen by the share `fall` below its best for `patience`
/// fast steps; then slow, until the loss of a slow step is seen.
#[derive(Debug)]
pub struct Plateau {
    decay: f64,
    fall: f64,
    patience: u64,
    /// The exponential mean, and the lowest it was.
    mean: Option<[f64; 2]>,
    /// Fast steps since that fell.
    waited: u64,
}

impl Plateau {
    /// From a specification; options `decay` of the mean (0.9), `fall` (0) and `patience` (8).
    pub fn new(spec: &ScheduleSpec) -> Result<Self, MakerError> {
        spec.options.expect(&["decay", "fall", "patience"])?;
        let decay = spec.options.share("decay")?.unwrap_or(0.9);
        let fall = spec.options.share("fall")?.unwrap_or(0.0);
        let patience = spec.options.count("patience")?.unwrap_or(8) as u64;
        Ok(Self { decay, fall, patience, mean: None, waited: 0 })
    }
}

impl ModeSchedule for Plateau {
    fn mode(&mut self, _step: u64, _total: u64) -> Mode {
        if self.mean.is_some() && self.waited >= self.patience { Mode::Slow } else { Mode::Fast }
    }

    fn observe(&mut self, past: &PastStep) {
        if past.mode == Mode::Slow {
            self.waited = 0;
            return;
        }
        let [mean, best] = self.mean.unwrap_or([past.loss, f64::MAX]);
        let mean = self.decay * mean + (1.0 - self.decay) * past.loss;
        let falls = mean < (1.0 - self.fall) * best;
        self.mean = Some([mean, if falls { mean } else { best }]);
        self.waited = if falls { 0 } else { self.waited + 1 };
    }

    fn state(&self) -> Value {
        json!([self.mean, self.waited])
    }

    fn restore(&mut self, state: &Value) -> Result<(), String> {
        let read = serde_json::from_value(state.clone());
        (self.mean, self.waited) = read.map_err(|error| error.to_string())?;
        Ok(())
    }
}
