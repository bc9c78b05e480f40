//! Losses as sums and counts, so that gradient accumulation is exact.
//!
//! Source: DualSpeed, arXiv 2602.03815: `L_fast = CE(y | M + V_pruned)`,
//! `L_slow = CE(y | V) + lambda KL(teacher || student)`.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use crate::error::ModelError;
use crate::forward::Forward;
use crate::llava::Llava;

/// Sums over the supervised tokens of one forward.
#[derive(Clone, Debug)]
pub struct LossSums<B: Backend> {
    /// Cross entropy, `[1]`, nats.
    pub ce: Tensor<B, 1>,
    /// `tau^2 KL(teacher || student)`, `[1]`, nats; none in fast mode.
    pub kl: Option<Tensor<B, 1>>,
    /// Correctly predicted tokens, `[1]`, without gradient.
    pub correct: Tensor<B, 1>,
    /// Supervised tokens.
    pub tokens: usize,
    /// Tokens with a teacher.
    pub kl_tokens: usize,
}

impl<B: Backend> LossSums<B> {
    /// `ce / tokens + lambda kl / kl_tokens`, `[1]`, with counts of the whole optimiser step: the
    /// losses of its micro-batches then add up to the loss of the one big batch.
    pub fn loss(&self, tokens: usize, kl_tokens: usize, lambda: f64) -> Tensor<B, 1> {
        let ce = self.ce.clone() / tokens.max(1) as f64;
        match &self.kl {
            Some(kl) if lambda != 0.0 => {
                ce + kl.clone().mul_scalar(lambda / kl_tokens.max(1) as f64)
            }
            _ => ce,
        }
    }
}

/// Cross entropy of a fast step.
pub fn fast_loss<B: Backend>(model: &Llava<B>, forward: &Forward<B>) -> LossSums<B> {
    let head = model.lm_head_weight();
    let losses = dualspeed_ops::token_losses(
        forward.hidden.clone(),
        head,
        forward.targets_tensor(),
        None,
        1.0,
    );
    let [ce, _, correct] = columns(losses);
    LossSums { ce, kl: None, correct, tokens: forward.targets.len(), kl_tokens: 0 }
}

/// Cross entropy and self-distillation of a slow step.
///
/// Rows are matched per sample; where the two sequences were cut differently the shorter count
/// wins, and the student's other rows have no KL. No gradient reaches the teacher.
///
/// # Errors
/// [`ModelError::BatchMismatch`] if the forwards are not of one batch.
pub fn slow_loss<B: Backend>(
    model: &Llava<B>,
    student: &Forward<B>,
    teacher: &Forward<B>,
    tau: f64,
) -> Result<LossSums<B>, ModelError> {
    let (ours, theirs) = (&student.rows_per_sample, &teacher.rows_per_sample);
    if ours.len() != theirs.len() {
        let (teacher, student) = (theirs.len(), ours.len());
        return Err(ModelError::BatchMismatch { teacher, student });
    }
    let head = model.lm_head_weight();
    let teacher_hidden = teacher.hidden.clone().detach();
    let (hidden, targets) = (student.hidden.clone(), student.targets_tensor());
    let tokens = student.targets.len();
    if ours == theirs {
        let losses = dualspeed_ops::token_losses(hidden, head, targets, Some(teacher_hidden), tau);
        let [ce, kl, correct] = columns(losses);
        return Ok(LossSums { ce, kl: Some(kl), correct, tokens, kl_tokens: tokens });
    }
    let matched = match_rows(ours, theirs);
    let device = hidden.device();
    let part = |rows: &[usize], teacher: Option<Tensor<B, 2>>| {
        let rows = indices(rows, &device);
        let (hidden, targets) =
            (hidden.clone().select(0, rows.clone()), targets.clone().select(0, rows));
        columns(dualspeed_ops::token_losses(hidden, head.clone(), targets, teacher, tau))
    };
    let mut sums: Option<[Tensor<B, 1>; 3]> = None;
    if !matched.student.is_empty() {
        let teacher = teacher_hidden.select(0, indices(&matched.teacher, &device));
        sums = Some(part(&matched.student, Some(teacher)));
    }
    if !matched.unmatched.is_empty() {
        let [ce, kl, correct] = part(&matched.unmatched, None);
        sums = Some(match sums {
            Some([sum_ce, sum_kl, sum_correct]) => [sum_ce + ce, sum_kl, sum_correct + correct],
            None => [ce, kl, correct],
        });
    }
    let Some([ce, kl, correct]) = sums else {
        return Err(ModelError::NothingSupervised { samples: Vec::new() });
    };
    Ok(LossSums { ce, kl: Some(kl), correct, tokens, kl_tokens: matched.student.len() })
}

/// Rows of student and teacher that belong together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Matched {
    student: Vec<usize>,
    teacher: Vec<usize>,
    unmatched: Vec<usize>,
}

fn match_rows(student: &[usize], teacher: &[usize]) -> Matched {
    let mut matched = Matched::default();
    let (mut at_student, mut at_teacher) = (0, 0);
    for (ours, theirs) in student.iter().zip(teacher) {
        let common = *ours.min(theirs);
        matched.student.extend(at_student..at_student + common);
        matched.teacher.extend(at_teacher..at_teacher + common);
        matched.unmatched.extend(at_student + common..at_student + ours);
        at_student += ours;
        at_teacher += theirs;
    }
    matched
}

fn indices<B: Backend>(rows: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

/// Column sums of `[n, 3]`, each `[1]`.
fn columns<B: Backend>(losses: Tensor<B, 2>) -> [Tensor<B, 1>; 3] {
    let sums = losses.sum_dim(0).reshape([3]); // [3]
    [sums.clone().narrow(0, 0, 1), sums.clone().narrow(0, 1, 1), sums.narrow(0, 2, 1)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_count_of_each_sample_wins() {
        let matched = match_rows(&[2, 1, 0, 3], &[1, 2, 2, 3]);
        assert_eq!(matched.student, [0, 2, 3, 4, 5]);
        assert_eq!(matched.teacher, [0, 1, 5, 6, 7]);
        assert_eq!(matched.unmatched, [1]);
    }
}
