//! DualSpeed's objective: cross entropy, and on slow steps self-distillation from the fast view.
//!
//! Source: arXiv 2602.03815: `L_fast = CE(y | M + V_pruned)`, `L_slow = CE(y | V) + lambda KL(teacher || student)`.

use burn::tensor::{Int, Tensor};
use dualspeed_ops::Backend;

use super::matched::{MatchedTokens, indices};
use super::{CORRECT, CROSS_ENTROPY, DISTILLATION, LossPart, Losses, Objective, ObjectiveInputs};
use crate::error::ModelError;

/// `(sum CE + lambda tau^2 sum KL(teacher || student)) / n` over the supervised tokens of a step.
///
/// Tokens are matched per sample; where the two sequences were cut differently the shorter count wins. A token without a
/// teacher (of a sample without an image, whose two views are one, or on a fast step) has KL 0: it counts in `n` all the
/// same, so it does not matter which samples share a micro-batch. No gradient reaches the teacher.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DualSpeedObjective {
    /// The weight of the distillation; 0 leaves the teacher out.
    pub lambda: f64,
    /// The temperature of the distillation.
    pub tau: f64,
}

impl DualSpeedObjective {
    /// The name in configurations.
    pub const NAME: &str = "dualspeed";
}

impl Default for DualSpeedObjective {
    /// The paper's lambda 1 at temperature 1.
    fn default() -> Self {
        Self { lambda: 1.0, tau: 1.0 }
    }
}

impl<B: Backend> Objective<B> for DualSpeedObjective {
    fn name(&self) -> &str {
        Self::NAME
    }

    fn needs_teacher(&self) -> bool {
        self.lambda > 0.0
    }

    fn losses(&self, inputs: &ObjectiveInputs<'_, B>) -> Result<Losses<B>, ModelError> {
        let (student, lm_head) = (inputs.student, &inputs.lm_head);
        let tokens = student.targets.len();
        // [3]: sums of cross entropy, KL, right predictions.
        let (sums, kl_tokens) = match inputs.teacher.zip(inputs.matched()?) {
            None => (sums(student.hidden.clone(), lm_head, student.targets_tensor(), None, 1.0), 0),
            Some((teacher, matched)) => {
                let teacher = teacher.hidden.clone().detach();
                let (hidden, targets) = (student.hidden.clone(), student.targets_tensor());
                (self.distil(hidden, targets, teacher, lm_head, &matched), matched.student.len())
            }
        };
        let part = |index: usize, name: &str, tokens, weight| LossPart {
            name: name.into(),
            sum: sums.clone().narrow(0, index, 1),
            tokens,
            weight,
        };
        let mut parts = vec![part(0, CROSS_ENTROPY, tokens, 1.0)];
        if inputs.teacher.is_some() {
            parts.push(part(1, DISTILLATION, kl_tokens, self.lambda));
        }
        parts.push(part(2, CORRECT, tokens, 0.0));
        Ok(Losses { parts, tokens })
    }
}

impl DualSpeedObjective {
    /// The three sums with a teacher for the matched tokens, `[3]`.
    fn distil<B: Backend>(
        &self,
        hidden: Tensor<B, 2>,
        targets: Tensor<B, 1, Int>,
        teacher: Tensor<B, 2>,
        lm_head: &Tensor<B, 2>,
        matched: &MatchedTokens,
    ) -> Tensor<B, 1> {
        if matched.is_everything {
            return sums(hidden, lm_head, targets, Some(teacher), self.tau);
        }
        let device = hidden.device();
        let part = |tokens: &[usize], teacher: Option<Tensor<B, 2>>| {
            let ids = indices(tokens, &device);
            let targets = targets.clone().select(0, ids.clone());
            sums(hidden.clone().select(0, ids), lm_head, targets, teacher, self.tau)
        };
        let with = (!matched.student.is_empty()).then(|| {
            let teacher = teacher.select(0, indices(&matched.teacher, &device));
            part(&matched.student, Some(teacher))
        });
        let without = (!matched.unmatched.is_empty()).then(|| part(&matched.unmatched, None));
        match (with, without) {
            (Some(with), Some(without)) => with + without,
            (with, without) => with.or(without).unwrap_or_else(|| Tensor::zeros([3], &device)),
        }
    }
}

/// Sums over tokens of cross entropy, `tau^2 KL`, and right predictions, `[3]`.
fn sums<B: Backend>(
    hidden: Tensor<B, 2>,
    lm_head: &Tensor<B, 2>,
    targets: Tensor<B, 1, Int>,
    teacher: Option<Tensor<B, 2>>,
    tau: f64,
) -> Tensor<B, 1> {
    let losses = dualspeed_ops::token_losses(hidden, lm_head.clone(), targets, teacher, tau);
    losses.sum_dim(0).reshape([3])
}
