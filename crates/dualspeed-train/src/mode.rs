//! Modes, and schedules of them: which optimiser steps are fast (pruned) and which are slow (full tokens).

use std::collections::VecDeque;
use std::fmt::Debug;

use dualspeed_core::rng::{hash_step, unit_interval};
use dualspeed_core::{Options, Registry};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The mode of one optimiser step (DualSpeed, section "Fast-slow training").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Pruned visual tokens behind the mode isolator; cross entropy.
    Fast,
    /// All visual tokens, no isolator; cross entropy and self-distillation from the fast view.
    Slow,
}

impl Mode {
    /// `fast` or `slow`.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Fast => "fast",
            Mode::Slow => "slow",
        }
    }
}

/// A step that is over, as schedules see it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PastStep {
    /// The optimiser step, from 0.
    pub step: u64,
    /// The mode it ran in.
    pub mode: Mode,
    /// Its loss.
    pub loss: f64,
}

/// Which mode a step runs in: a function of the step and of the losses of steps that are long over, so every rank and every
/// resumed run agrees and nothing waits for a loss.
pub trait ModeSchedule: Debug + Send {
    /// The mode of optimiser step `step` of `total`, counted from 0. Called once per step, in order.
    fn mode(&mut self, step: u64, total: u64) -> Mode;

    /// Takes in a step that is over: before the mode of step `s` is asked for, every step up to `s - mode.lag` has been
    /// given, in order, but for those that were skipped: their loss says nothing about the model.
    fn observe(&mut self, past: &PastStep) {
        let _ = past;
    }

    /// What a checkpoint needs to hold of the past; nothing by default.
    fn state(&self) -> Value {
        Value::Null
    }

    /// Takes up a state that [`ModeSchedule::state`] gave.
    ///
    /// # Errors
    /// What is wrong with the state.
    fn restore(&mut self, state: &Value) -> Result<(), String> {
        match state {
            Value::Null => Ok(()),
            other => Err(format!("this schedule has no state, the checkpoint has {other}")),
        }
    }
}

/// A schedule as configurations name it.
#[derive(Clone, Debug, PartialEq)]
pub struct ScheduleSpec {
    /// Name in the registry.
    pub name: String,
    /// The seed of the run.
    pub seed: u64,
    /// r: the probability of a slow step under `bernoulli`.
    pub slow_mode_ratio: f64,
    /// The period under `periodic`.
    pub every: u64,
    /// The schedule's own options.
    pub options: Options,
}

/// Makers of schedules by name.
pub type ScheduleRegistry = Registry<ScheduleSpec, dyn ModeSchedule>;

/// The schedules of this crate: `bernoulli`, `periodic`, `always_fast`, `always_slow`.
pub fn schedule_registry() -> ScheduleRegistry {
    let registry: ScheduleRegistry = Registry::new("mode schedule");
    registry
        .with("bernoulli", |spec: &ScheduleSpec| {
            spec.options.expect(&[])?;
            Ok(Box::new(Bernoulli { seed: spec.seed, r: spec.slow_mode_ratio }))
        })
        .with("periodic", |spec: &ScheduleSpec| {
            spec.options.expect(&[])?;
            Ok(Box::new(Periodic { every: spec.every }))
        })
        .with("always_fast", |spec: &ScheduleSpec| {
            spec.options.expect(&[])?;
            Ok(Box::new(AlwaysFast))
        })
        .with("always_slow", |spec: &ScheduleSpec| {
            spec.options.expect(&[])?;
            Ok(Box::new(AlwaysSlow))
        })
}

/// Slow with probability `r`, drawn independently per step from a hash of (seed, step): the paper's
/// schedule.
#[derive(Clone, Copy, Debug)]
pub struct Bernoulli {
    /// The seed of the run.
    pub seed: u64,
    /// The slow mode ratio r in [0, 1].
    pub r: f64,
}

/// What the draw of a step's mode is for, among all that is drawn from (seed, step).
const MODE_PURPOSE: u64 = 1;

impl ModeSchedule for Bernoulli {
    fn mode(&mut self, step: u64, _total: u64) -> Mode {
        if unit_interval(hash_step(self.seed, step, MODE_PURPOSE)) < self.r {
            Mode::Slow
        } else {
            Mode::Fast
        }
    }
}

/// Slow on every `every`-th step: exact share, no luck involved.
#[derive(Clone, Copy, Debug)]
pub struct Periodic {
    /// The period; steps `every - 1`, `2 * every - 1`, ... are slow. 0 is treated as 1.
    pub every: u64,
}

impl ModeSchedule for Periodic {
    fn mode(&mut self, step: u64, _total: u64) -> Mode {
        if (step + 1).is_multiple_of(self.every.max(1)) { Mode::Slow } else { Mode::Fast }
    }
}

/// Every step fast: NaivePrune, and stage 1 as published.
#[derive(Clone, Copy, Debug)]
pub struct AlwaysFast;

impl ModeSchedule for AlwaysFast {
    fn mode(&mut self, _step: u64, _total: u64) -> Mode {
        Mode::Fast
    }
}

/// Every step slow: plain LLaVA training when the distillation weight is 0.
#[derive(Clone, Copy, Debug)]
pub struct AlwaysSlow;

impl ModeSchedule for AlwaysSlow {
    fn mode(&mut self, _step: u64, _total: u64) -> Mode {
        Mode::Slow
    }
}

/// What a checkpoint holds of a schedule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScheduleState {
    /// The schedule's own state.
    pub schedule: Value,
    /// Steps that are over and that the schedule may not see yet.
    pub recent: Vec<PastStep>,
}

/// A schedule with the steps it may not see yet.
#[derive(Debug)]
pub(crate) struct LaggedSchedule {
    schedule: Box<dyn ModeSchedule>,
    lag: u64,
    recent: VecDeque<PastStep>,
}

impl LaggedSchedule {
    /// A schedule that sees the losses of steps up to `s - lag` when the mode of step `s` is asked for.
    pub(crate) fn new(schedule: Box<dyn ModeSchedule>, lag: u64) -> Self {
        Self { schedule, lag, recent: VecDeque::new() }
    }

    /// The mode of a step.
    pub(crate) fn mode(&mut self, step: u64, total: u64) -> Mode {
        while let Some(past) = self.recent.front().filter(|past| past.step + self.lag <= step) {
            self.schedule.observe(past);
            self.recent.pop_front();
        }
        self.schedule.mode(step, total)
    }

    /// Takes in a step that is over.
    pub(crate) fn finished(&mut self, past: PastStep) {
        self.recent.push_back(past);
    }

    pub(crate) fn state(&self) -> ScheduleState {
        ScheduleState {
            schedule: self.schedule.state(),
            recent: self.recent.iter().copied().collect(),
        }
    }

    pub(crate) fn restore(&mut self, state: &ScheduleState) -> Result<(), String> {
        self.recent = state.recent.iter().copied().collect();
        self.schedule.restore(&state.schedule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn modes(schedule: &mut dyn ModeSchedule, steps: u64) -> Vec<Mode> {
        (0..steps).map(|step| schedule.mode(step, steps)).collect()
    }

    #[test]
    fn bernoulli_is_pure_and_has_the_right_share() {
        let mut schedule = Bernoulli { seed: 7, r: 0.1 };
        let first = modes(&mut schedule, 20_000);
        assert_eq!(first, modes(&mut schedule, 20_000));
        let slow = first.iter().filter(|mode| **mode == Mode::Slow).count() as f64 / 20_000.0;
        assert!((slow - 0.1).abs() < 0.01, "share of slow steps {slow}");
        let other = modes(&mut Bernoulli { seed: 8, r: 0.1 }, 1000);
        assert_ne!(other, first[..1000]);
    }

    #[test]
    fn bernoulli_at_its_ends_is_constant() {
        let all = |r| modes(&mut Bernoulli { seed: 1, r }, 1000);
        assert!(all(0.0).iter().all(|mode| *mode == Mode::Fast));
        assert!(all(1.0).iter().all(|mode| *mode == Mode::Slow));
    }

    #[test]
    fn periodic_ends_each_period_slow() {
        use Mode::{Fast, Slow};
        let found = modes(&mut Periodic { every: 3 }, 6);
        assert_eq!(found, [Fast, Fast, Slow, Fast, Fast, Slow]);
    }

    /// Slow as long as the last loss it saw is above 1; remembers it.
    #[derive(Debug, Default)]
    struct Reacting(Option<PastStep>);

    impl ModeSchedule for Reacting {
        fn mode(&mut self, _step: u64, _total: u64) -> Mode {
            if self.0.is_some_and(|past| past.loss > 1.0) { Mode::Slow } else { Mode::Fast }
        }
        fn observe(&mut self, past: &PastStep) {
            self.0 = Some(*past);
        }
        fn state(&self) -> Value {
            serde_json::json!(self.0)
        }
        fn restore(&mut self, state: &Value) -> Result<(), String> {
            self.0 = serde_json::from_value(state.clone()).map_err(|error| error.to_string())?;
            Ok(())
        }
    }

    #[test]
    fn a_schedule_sees_losses_up_to_its_lag_and_resumes_where_it_was() {
        let losses = [0.5, 2.0, 0.5, 2.0, 2.0, 0.5, 2.0, 0.5];
        let run = |stop: Option<u64>| {
            let mut lagged = LaggedSchedule::new(Box::<Reacting>::default(), 3);
            let mut found = Vec::new();
            for (step, loss) in losses.into_iter().enumerate() {
                let step = step as u64;
                if stop == Some(step) {
                    let state = lagged.state();
                    lagged = LaggedSchedule::new(Box::<Reacting>::default(), 3);
                    lagged.restore(&state).unwrap();
                }
                let mode = lagged.mode(step, 8);
                lagged.finished(PastStep { step, mode, loss });
                found.push(mode);
            }
            found
        };
        use Mode::{Fast, Slow};
        // Step s follows the loss of step s - 3.
        assert_eq!(run(None), [Fast, Fast, Fast, Fast, Slow, Fast, Slow, Slow]);
        for stop in 0..8 {
            assert_eq!(run(Some(stop)), run(None), "resumed at {stop}");
        }
    }
}
