//! The accuracy of a guesser that knows the kinds of questions and nothing else.

use std::collections::BTreeMap;

use crate::question::{QuestionKind, QuestionMeta};

/// Accuracy of always giving the most frequent answer of each question kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chance {
    /// Over all questions, in `[0, 1]`; 0 when there are none.
    pub accuracy: f64,
    /// Per kind: accuracy, the answer given, number of questions.
    pub by_kind: BTreeMap<QuestionKind, (f64, String, usize)>,
}

/// Computes the accuracy of always giving the most frequent answer of each question kind; of equally frequent answers the
/// first in alphabetical order.
pub fn chance<'a>(questions: impl IntoIterator<Item = &'a QuestionMeta>) -> Chance {
    let mut counts: BTreeMap<QuestionKind, BTreeMap<&str, usize>> = BTreeMap::new();
    for question in questions {
        *counts.entry(question.kind).or_default().entry(&question.answer).or_default() += 1;
    }
    let (mut right, mut total) = (0, 0);
    let mut by_kind = BTreeMap::new();
    for (kind, answers) in counts {
        let asked: usize = answers.values().sum();
        // `rev` makes the alphabetically first of equals the last, which is the one `max_by_key` keeps.
        if let Some((answer, &hits)) = answers.iter().rev().max_by_key(|&(_, &hits)| hits) {
            right += hits;
            total += asked;
            by_kind.insert(kind, (hits as f64 / asked as f64, answer.to_string(), asked));
        }
    }
    Chance { accuracy: if total == 0 { 0.0 } else { right as f64 / total as f64 }, by_kind }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_most_frequent_answer_of_each_kind() {
        let asked = [
            (QuestionKind::Count, "two"),
            (QuestionKind::Count, "three"),
            (QuestionKind::Count, "three"),
            (QuestionKind::Presence, "yes"),
            (QuestionKind::Presence, "no"),
        ];
        let questions: Vec<_> = asked
            .into_iter()
            .map(|(kind, answer)| QuestionMeta { kind, answer_position: 0, answer: answer.into() })
            .collect();
        let chance = chance(&questions);
        assert_eq!(chance.accuracy, 3.0 / 5.0);
        assert_eq!(chance.by_kind[&QuestionKind::Count], (2.0 / 3.0, "three".into(), 3));
        assert_eq!(chance.by_kind[&QuestionKind::Presence], (0.5, "no".into(), 2));
        assert_eq!(super::chance([]), Chance::default());
    }
}
