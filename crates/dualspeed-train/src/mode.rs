//! Mode schedules: which optimiser steps are fast (pruned) and which are slow (full tokens).

use serde::{Deserialize, Serialize};

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

/// Which mode a step runs in: a pure function of the step, so every rank and every resumed run
/// agrees.
pub trait ModeSchedule: std::fmt::Debug + Send + Sync {
    /// The mode of optimiser step `step`, counted from 0.
    fn mode(&self, step: u64) -> Mode;
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

impl ModeSchedule for Bernoulli {
    fn mode(&self, step: u64) -> Mode {
        if unit_interval(hash(self.seed, step, Purpose::Mode)) < self.r {
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
    fn mode(&self, step: u64) -> Mode {
        if (step + 1).is_multiple_of(self.every.max(1)) { Mode::Slow } else { Mode::Fast }
    }
}

/// Every step fast: NaivePrune, and stage 1 as published.
#[derive(Clone, Copy, Debug)]
pub struct AlwaysFast;

impl ModeSchedule for AlwaysFast {
    fn mode(&self, _step: u64) -> Mode {
        Mode::Fast
    }
}

/// Every step slow: plain LLaVA training when the distillation weight is 0.
#[derive(Clone, Copy, Debug)]
pub struct AlwaysSlow;

impl ModeSchedule for AlwaysSlow {
    fn mode(&self, _step: u64) -> Mode {
        Mode::Slow
    }
}

/// What a pseudo-random number is used for: streams of different purposes never meet.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Purpose {
    Mode = 1,
    Tower = 2,
}

/// A hash of (seed, step, purpose) with all 64 bits mixed (SplitMix64's finaliser, applied per
/// word).
pub(crate) fn hash(seed: u64, step: u64, purpose: Purpose) -> u64 {
    let mut state = mix(seed ^ 0x9e37_79b9_7f4a_7c15);
    state = mix(state ^ step.wrapping_add(0xbf58_476d_1ce4_e5b9));
    mix(state ^ (purpose as u64).wrapping_mul(0x94d0_49bb_1331_11eb))
}

fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The upper 53 bits as a number in [0, 1).
fn unit_interval(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bernoulli_is_pure_and_has_the_right_share() {
        let schedule = Bernoulli { seed: 7, r: 0.1 };
        let first: Vec<Mode> = (0..20_000).map(|step| schedule.mode(step)).collect();
        let again: Vec<Mode> = (0..20_000).map(|step| schedule.mode(step)).collect();
        assert_eq!(first, again);
        let slow = first.iter().filter(|mode| **mode == Mode::Slow).count() as f64 / 20_000.0;
        assert!((slow - 0.1).abs() < 0.01, "share of slow steps {slow}");
        let other = Bernoulli { seed: 8, r: 0.1 };
        assert!((0..1000).any(|step| other.mode(step) != schedule.mode(step)));
    }

    #[test]
    fn bernoulli_at_its_ends_is_constant() {
        assert!((0..1000).all(|step| Bernoulli { seed: 1, r: 0.0 }.mode(step) == Mode::Fast));
        assert!((0..1000).all(|step| Bernoulli { seed: 1, r: 1.0 }.mode(step) == Mode::Slow));
    }

    #[test]
    fn periodic_ends_each_period_slow() {
        let modes: Vec<Mode> = (0..6).map(|step| Periodic { every: 3 }.mode(step)).collect();
        use Mode::{Fast, Slow};
        assert_eq!(modes, [Fast, Fast, Slow, Fast, Fast, Slow]);
    }
}
