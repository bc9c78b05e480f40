//! What was found in a data set, as plain data.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use crate::error::DataError;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The record cannot be used.
    Fault,
    /// It can, but not as it may have been meant.
    Warning,
}

/// One thing that was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// Number of the record, from 0; none where the finding is of the file.
    pub record: Option<usize>,
    /// Line of the file on which the record starts, from 1.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub line: Option<usize>,
    /// Id of the record.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub id: Option<String>,
    /// What, where, and what to do.
    pub message: String,
}

impl Finding {
    /// A finding about record `record`, in the words of its error.
    pub fn of(record: usize, error: &DataError) -> Self {
        let mut finding =
            Self { record: Some(record), line: None, id: None, message: error.to_string() };
        let mut error = error;
        while let DataError::Shared(inner) = error {
            error = inner;
        }
        match error {
            DataError::Record { line, id, .. } => {
                (finding.line, finding.id) = (Some(*line), Some(id.clone()));
            }
            DataError::Json { line, .. } => finding.line = Some(*line),
            DataError::Example { id, .. } => finding.id = Some(id.clone()),
            _ => {}
        }
        finding
    }
}

/// Findings of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// How bad they are.
    pub severity: Severity,
    /// Name of the kind.
    pub kind: String,
    /// How many there are.
    pub count: usize,
    /// The first of them.
    pub first: Vec<Finding>,
}

/// Lengths in one view.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ViewReport {
    /// Name of the view: `full`, `pruned`.
    pub view: String,
    /// Tokens of an example without truncation, visual tokens and isolator included.
    pub lengths: Histogram,
    /// Examples that are longer than `max_length`.
    pub cut: usize,
    /// Those whose answers lose some, but not all of their tokens.
    pub answers_shortened: usize,
    /// Those whose answers lose all of them.
    pub answers_cut_off: usize,
    /// Supervised tokens that are cut off, of all examples together.
    pub supervised_lost: usize,
    /// Images that are left out because they lie beyond `max_length`.
    pub images_lost: usize,
}

/// What was found in a data set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DataReport {
    /// The data set: its file, or its section of the configuration.
    pub what: String,
    /// Records in all.
    pub records: usize,
    /// Records that cannot be used.
    pub unusable: usize,
    /// What was found, worst first.
    pub groups: Vec<Group>,
    /// Records without an image, of those that can be read.
    pub text_only: usize,
    /// Images of all records together.
    pub images: usize,
    /// Image files, each counted once.
    pub image_files: usize,
    /// Longer sides of the image files that can be decoded, in pixels.
    pub image_sides: Histogram,
    /// Turns by role, as written.
    pub roles: BTreeMap<String, usize>,
    /// Keys that are not read, with the number of records or turns that have them.
    pub unread_keys: BTreeMap<String, usize>,
    /// Rows of the embedding; none where no model is known.
    pub vocab_size: Option<usize>,
    /// The largest token id; none of no text.
    pub largest_token_id: Option<i64>,
    /// Where sequences are cut; none: nowhere.
    pub max_length: Option<usize>,
    /// Whether lengths are in words, as there is no tokenizer.
    pub in_words: bool,
    /// Lengths in each view.
    pub views: Vec<ViewReport>,
    /// Supervised tokens of an example, without truncation.
    pub supervised: Histogram,
    /// Whether images were decoded.
    pub images_checked: bool,
    /// Seconds it took.
    pub seconds: f64,
}

impl DataReport {
    /// Number of findings of a severity.
    pub fn count(&self, severity: Severity) -> usize {
        self.groups.iter().filter(|group| group.severity == severity).map(|group| group.count).sum()
    }

    /// The findings of a kind.
    pub fn group(&self, kind: &str) -> Option<&Group> {
        self.groups.iter().find(|group| group.kind == kind)
    }

    /// Share of records without an image, of those that can be read, in [0, 1].
    pub fn text_only_share(&self) -> f64 {
        let readable = self.supervised.count;
        if readable == 0 { 0.0 } else { self.text_only as f64 / readable as f64 }
    }
}

/// Findings while they are collected.
#[derive(Debug)]
pub(super) struct Findings {
    groups: BTreeMap<(Severity, String), (usize, Vec<Finding>)>,
    listed: usize,
}

impl Findings {
    /// Of each kind the first `listed` findings are kept in full.
    pub fn new(listed: usize) -> Self {
        Self { groups: BTreeMap::new(), listed }
    }

    pub fn add(&mut self, severity: Severity, kind: &str, finding: impl FnOnce() -> Finding) {
        let (count, first) = self.groups.entry((severity, kind.to_owned())).or_default();
        *count += 1;
        if first.len() < self.listed {
            first.push(finding());
        }
    }

    /// Worst first, then most first.
    pub fn finish(self) -> Vec<Group> {
        let groups = self.groups.into_iter().map(|((severity, kind), (count, first))| Group {
            severity,
            kind,
            count,
            first,
        });
        let mut groups: Vec<_> = groups.collect();
        groups.sort_by_key(|group| (group.severity, std::cmp::Reverse(group.count)));
        groups
    }
}
