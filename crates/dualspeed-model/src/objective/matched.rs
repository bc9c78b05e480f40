//! Supervised tokens of two views of a batch that belong together.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::ObjectiveInputs;
use crate::error::ModelError;

/// Rows of [`Forward::hidden`](crate::Forward::hidden) of student and teacher that predict the same token, as indices. Tokens
/// are matched per sample: where the two sequences were cut differently the shorter count wins, and a sample without an
/// image, whose two views are one, has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MatchedTokens {
    /// The student's.
    pub student: Vec<usize>,
    /// The teacher's, as many.
    pub teacher: Vec<usize>,
    /// The student's others.
    pub unmatched: Vec<usize>,
    /// Whether every token of both has its counterpart, in the same order.
    pub is_everything: bool,
}

impl MatchedTokens {
    fn new(student: &[usize], teacher: &[usize], has_image: &[bool]) -> Self {
        let is_everything = student == teacher && !has_image.contains(&false);
        let mut matched = Self { is_everything, ..Self::default() };
        let (mut at_student, mut at_teacher) = (0, 0);
        for ((ours, theirs), has_image) in student.iter().zip(teacher).zip(has_image) {
            let common = if *has_image { *ours.min(theirs) } else { 0 };
            matched.student.extend(at_student..at_student + common);
            matched.teacher.extend(at_teacher..at_teacher + common);
            matched.unmatched.extend(at_student + common..at_student + ours);
            at_student += ours;
            at_teacher += theirs;
        }
        matched
    }
}

impl<B: Backend> ObjectiveInputs<'_, B> {
    /// Which supervised tokens student and teacher have in common; `None` without a teacher.
    ///
    /// # Errors
    /// [`ModelError::BatchMismatch`] if the two are of different batches.
    pub fn matched(&self) -> Result<Option<MatchedTokens>, ModelError> {
        let Some(teacher) = self.teacher else { return Ok(None) };
        let (ours, theirs) = (&self.student.supervised_per_sample, &teacher.supervised_per_sample);
        match ours.len() == theirs.len() {
            true => Ok(Some(MatchedTokens::new(ours, theirs, &self.student.has_image))),
            false => Err(ModelError::BatchMismatch { teacher: theirs.len(), student: ours.len() }),
        }
    }

    /// Hidden states of student and teacher at the tokens they have in common, `[m, d]` each, the teacher's without gradient;
    /// `None` without a teacher, or where nothing is in common.
    ///
    /// # Errors
    /// As [`ObjectiveInputs::matched`].
    pub fn matched_hidden(&self) -> Result<Option<[Tensor<B, 2>; 2]>, ModelError> {
        let Some((teacher, matched)) = self.teacher.zip(self.matched()?) else { return Ok(None) };
        if matched.student.is_empty() {
            return Ok(None);
        }
        let rows = |hidden: &Tensor<B, 2>, rows: &[usize]| {
            hidden.clone().select(0, indices(rows, &hidden.device()))
        };
        let student = rows(&self.student.hidden, &matched.student);
        Ok(Some([student, rows(&teacher.hidden, &matched.teacher).detach()]))
    }
}

/// Indices on the device, `[n]`.
pub(super) fn indices<B: Backend>(rows: &[usize], device: &B::Device) -> Tensor<B, 1, Int> {
    let rows: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
    let count = rows.len();
    Tensor::from_data(TensorData::new(rows, [count]), device)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_count_of_each_sample_wins() {
        let matched = MatchedTokens::new(&[2, 1, 0, 3], &[1, 2, 2, 3], &[true; 4]);
        assert_eq!(matched.student, [0, 2, 3, 4, 5]);
        assert_eq!(matched.teacher, [0, 1, 5, 6, 7]);
        assert_eq!(matched.unmatched, [1]);
        assert!(!matched.is_everything);
        assert!(MatchedTokens::new(&[2, 1], &[2, 1], &[true; 2]).is_everything);
    }

    #[test]
    fn a_sample_without_an_image_has_no_teacher() {
        let matched = MatchedTokens::new(&[2, 1], &[2, 1], &[true, false]);
        assert_eq!((matched.student, matched.unmatched), (vec![0, 1], vec![2]));
    }
}
