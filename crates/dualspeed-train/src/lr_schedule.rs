//! Learning rate: linear warm-up, then cosine to zero, once per optimiser step.

use burn::lr_scheduler::LrScheduler;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};

/// The shape of the learning rate after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Decay {
    /// `lr * (1 + cos(pi t)) / 2` with t from 0 to 1 (Hugging Face's `cosine`, what LLaVA uses).
    #[default]
    Cosine,
    /// The full rate until the end.
    Constant,
}

/// Warm-up and decay as a pure function of the step; `step()` counts for Burn's `LrScheduler`.
#[derive(Clone, Debug)]
pub struct WarmupSchedule {
    lr: f64,
    warmup_steps: u64,
    total_steps: u64,
    decay: Decay,
    next: u64,
}

impl WarmupSchedule {
    /// A schedule that peaks at `lr` and ends after `total_steps` steps.
    pub fn new(lr: f64, warmup_steps: u64, total_steps: u64, decay: Decay) -> Self {
        Self { lr, warmup_steps, total_steps, decay, next: 0 }
    }

    /// Continues at `step`, counted from 0.
    pub fn starting_at(mut self, step: u64) -> Self {
        self.next = step;
        self
    }

    /// The learning rate of optimiser step `step`, counted from 0.
    ///
    /// Departs from Hugging Face's schedule in one point: the first step has rate `lr /
    /// warmup_steps` there 0, so that no step is lost.
    pub fn at(&self, step: u64) -> f64 {
        if step < self.warmup_steps {
            return self.lr * (step + 1) as f64 / self.warmup_steps as f64;
        }
        match self.decay {
            Decay::Constant => self.lr,
            Decay::Cosine => {
                let span = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
                let progress = ((step - self.warmup_steps) as f64 / span).min(1.0);
                self.lr * 0.5 * (1.0 + (std::f64::consts::PI * progress).cos())
            }
        }
    }
}

impl LrScheduler for WarmupSchedule {
    type Record<B: Backend> = usize;

    fn step(&mut self) -> f64 {
        let lr = self.at(self.next);
        self.next += 1;
        lr
    }

    fn to_record<B: Backend>(&self) -> Self::Record<B> {
        self.next as usize
    }

    fn load_record<B: Backend>(mut self, record: Self::Record<B>) -> Self {
        self.next = record as u64;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warms_up_linearly_then_falls_to_zero() {
        let schedule = WarmupSchedule::new(1.0, 4, 104, Decay::Cosine);
        let warm: Vec<f64> = (0..4).map(|step| schedule.at(step)).collect();
        assert_eq!(warm, [0.25, 0.5, 0.75, 1.0]);
        assert_eq!(schedule.at(4), 1.0);
        assert!((schedule.at(54) - 0.5).abs() < 1e-12);
        assert!(schedule.at(104) < 1e-12 && schedule.at(103) > 0.0);
    }

    #[test]
    fn continues_where_it_stopped() {
        let mut whole = WarmupSchedule::new(0.3, 2, 10, Decay::Cosine);
        let all: Vec<f64> = (0..10).map(|_| LrScheduler::step(&mut whole)).collect();
        let mut rest = WarmupSchedule::new(0.3, 2, 10, Decay::Cosine).starting_at(6);
        let tail: Vec<f64> = (6..10).map(|_| LrScheduler::step(&mut rest)).collect();
        assert_eq!(all[6..], tail);
    }

    #[test]
    fn without_warm_up_starts_at_the_peak() {
        assert_eq!(WarmupSchedule::new(0.5, 0, 10, Decay::Constant).at(0), 0.5);
        assert_eq!(WarmupSchedule::new(0.5, 0, 10, Decay::Constant).at(9), 0.5);
    }
}
