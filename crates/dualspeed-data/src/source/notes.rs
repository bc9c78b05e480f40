//! What a reader should hear of a file of examples, though it is no mistake.

use std::collections::BTreeMap;

/// What a reader should hear of a file, though it is no mistake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileNotes {
    /// Keys that are not read, with the number of records or turns that have them.
    pub unread_keys: BTreeMap<String, usize>,
    /// Records that begin with an answer, which is left out.
    pub begin_with_answer: usize,
    /// Records that cannot be used, and stayed in the data set all the same.
    pub unusable: usize,
    /// Turns by role, as written.
    pub roles: BTreeMap<String, usize>,
}

impl FileNotes {
    /// What is to be said once, a sentence each.
    pub fn sentences(&self) -> Vec<String> {
        let mut sentences = Vec::new();
        if !self.unread_keys.is_empty() {
            let keys = self.unread_keys.iter().map(|(key, count)| format!("{key} ({count})"));
            let keys: Vec<_> = keys.collect();
            sentences.push(format!("keys that are not read: {}", keys.join(", ")));
        }
        if self.begin_with_answer > 0 {
            let count = self.begin_with_answer;
            sentences.push(format!(
                "{count} record(s) begin with an answer, which is left out, as LLaVA's trainer does"
            ));
        }
        sentences
    }
}
