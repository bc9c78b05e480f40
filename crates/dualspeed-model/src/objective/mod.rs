//! Objectives: what a step minimises, as named sums over tokens that are divided last.
//!
//! | module | concept |
//! |---|---|
//! | this one | [`Objective`], what it reads and what it returns |
//! | [`dualspeed`] | cross entropy and self-distillation |
//! | [`matched`] | tokens that student and teacher have in common |
//! | [`registry`] | objectives by name |
//!
//! The loss of an optimiser step is `L = (sum_i weight_i sum_i) / n` with one `n`, the supervised tokens of the whole step: of
//! all its micro-batches, and of all ranks. An objective returns the sums of a micro-batch; whoever has the last of them
//! divides. So micro-batches, accumulation and ranks give the loss of the one big batch exactly.

pub mod dualspeed;
pub mod matched;
pub mod registry;

use std::fmt::Debug;

use burn::tensor::Tensor;
use dualspeed_ops::Backend;

pub use dualspeed::DualSpeedObjective;
pub use matched::MatchedTokens;
pub use registry::{ObjectiveRegistry, ObjectiveSpec};

use crate::error::ModelError;
use crate::vlm::Forward;

/// What an objective may read of a micro-batch.
#[derive(Debug)]
pub struct ObjectiveInputs<'a, B: Backend> {
    /// The forward that takes gradients.
    pub student: &'a Forward<B>,
    /// The fast view of the same batch without gradient, on slow steps with images.
    pub teacher: Option<&'a Forward<B>>,
    /// The output head, `[d, vocab]`: logits are `hidden x lm_head`.
    pub lm_head: Tensor<B, 2>,
}

/// A named term of a loss, summed over the tokens of a micro-batch.
#[derive(Clone, Debug)]
pub struct LossPart<B: Backend> {
    /// Its name in records and reports.
    pub name: String,
    /// The sum over its tokens, `[1]`, f32.
    pub sum: Tensor<B, 1>,
    /// How many tokens it is a sum over, for its mean in records.
    pub tokens: usize,
    /// The factor with which it enters the loss; 0 for what is only reported.
    pub weight: f64,
}

/// The terms of a micro-batch's loss.
#[derive(Clone, Debug)]
pub struct Losses<B: Backend> {
    /// Terms by name.
    pub parts: Vec<LossPart<B>>,
    /// Supervised tokens: what the whole step's loss is divided by, summed over its micro-batches.
    pub tokens: usize,
}

/// The name of the cross entropy among an objective's parts.
pub const CROSS_ENTROPY: &str = "ce";
/// The name of the self-distillation among an objective's parts.
pub const DISTILLATION: &str = "kl";
/// The name of the count of rightly predicted tokens among an objective's parts.
pub const CORRECT: &str = "correct";

impl<B: Backend> Losses<B> {
    /// A term by name.
    pub fn part(&self, name: &str) -> Option<&LossPart<B>> {
        self.parts.iter().find(|part| part.name == name)
    }

    /// `sum_i weight_i sum_i`, `[1]`: what gradients are taken of.
    ///
    /// # Errors
    /// [`ModelError::Objective`] if no part has a weight.
    pub fn weighted_sum(&self) -> Result<Tensor<B, 1>, ModelError> {
        let weighted = self.parts.iter().filter(|part| part.weight != 0.0);
        let terms = weighted.map(|part| match part.weight {
            1.0 => part.sum.clone(),
            weight => part.sum.clone().mul_scalar(weight),
        });
        terms.reduce(|sum, term| sum + term).ok_or_else(|| ModelError::Objective {
            objective: "loss".into(),
            problem: "none of its parts has a weight, so there is nothing to minimise".into(),
        })
    }

    /// The loss of a step with `tokens` supervised tokens in all, `[1]`.
    ///
    /// # Errors
    /// As [`Losses::weighted_sum`].
    pub fn loss(&self, tokens: usize) -> Result<Tensor<B, 1>, ModelError> {
        Ok(self.weighted_sum()? / tokens.max(1) as f64)
    }
}

/// What a step minimises.
pub trait Objective<B: Backend>: Debug + Send + Sync {
    /// The name in configurations and records.
    fn name(&self) -> &str;

    /// Whether slow steps run a teacher for it.
    fn needs_teacher(&self) -> bool {
        false
    }

    /// The terms of a micro-batch's loss.
    ///
    /// # Errors
    /// [`ModelError`] if student and teacher do not fit together, or nothing is supervised.
    fn losses(&self, inputs: &ObjectiveInputs<'_, B>) -> Result<Losses<B>, ModelError>;
}
