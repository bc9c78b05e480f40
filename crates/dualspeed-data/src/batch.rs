//! Batches on the host. Padding is the model's business: it knows the visual lengths of a view.

use std::sync::Arc;

use crate::example::{Example, HostImage, QuestionMeta};

/// Examples side by side, unpadded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostBatch {
    /// One id per sample.
    pub sample_ids: Vec<String>,
    /// One row of ids per sample.
    pub input_ids: Vec<Vec<i64>>,
    /// One row of labels per sample, as long as its ids.
    pub labels: Vec<Vec<i64>>,
    /// All images, sample by sample, in the order of their placeholders.
    pub images: Vec<Arc<HostImage>>,
    /// Scorable questions per sample.
    pub questions: Vec<Vec<QuestionMeta>>,
    /// First human turn per sample.
    pub prompts: Vec<String>,
}

/// Puts examples side by side.
pub fn collate(examples: Vec<Example>) -> HostBatch {
    let mut batch = HostBatch::default();
    for example in examples {
        batch.sample_ids.push(example.id);
        batch.input_ids.push(example.input_ids);
        batch.labels.push(example.labels);
        batch.images.extend(example.images);
        batch.questions.push(example.questions);
        batch.prompts.push(example.prompt);
    }
    batch
}
