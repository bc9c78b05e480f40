//! Token ids and labels of a batch.

use dualspeed_data::{HostBatch, IGNORE_INDEX, IMAGE_TOKEN_INDEX};

/// Token ids and labels of a batch, borrowed from the host.
#[derive(Clone, Copy, Debug)]
pub struct TextBatch<'a> {
    /// Per sample, with [`IMAGE_TOKEN_INDEX`] once per image.
    pub input_ids: &'a [Vec<i64>],
    /// Per sample, same lengths; [`IGNORE_INDEX`] where there is no loss.
    pub labels: &'a [Vec<i64>],
}

impl<'a> From<&'a HostBatch> for TextBatch<'a> {
    fn from(batch: &'a HostBatch) -> Self {
        Self { input_ids: &batch.input_ids, labels: &batch.labels }
    }
}

/// Text and images that do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// A batch without samples.
    #[error("the batch is empty")]
    Empty,
    /// A sample without tokens.
    #[error("sample {sample} of the batch has no tokens")]
    EmptySample {
        /// Index in the batch.
        sample: usize,
    },
    /// A sample whose labels do not line up with its ids.
    #[error("sample {sample} of the batch has {ids} token ids but {labels} labels")]
    LabelCount {
        /// Index in the batch.
        sample: usize,
        /// Token ids.
        ids: usize,
        /// Labels.
        labels: usize,
    },
    /// Placeholders and images disagree.
    #[error("the batch has {placeholders} image placeholder(s) but {images} image(s)")]
    ImageCount {
        /// Placeholders in `input_ids`.
        placeholders: usize,
        /// Images with visual tokens.
        images: usize,
    },
    /// An id outside the vocabulary.
    #[error(
        "token id {id} at position {position} of sample {sample} is outside the vocabulary of \
         {vocab}; was the text made with another tokenizer?"
    )]
    TokenId {
        /// Index in the batch.
        sample: usize,
        /// Index in `input_ids`.
        position: usize,
        /// The id.
        id: i64,
        /// Size of the vocabulary.
        vocab: usize,
    },
}

impl TextBatch<'_> {
    /// Image placeholders per sample.
    pub fn images_per_sample(&self) -> Vec<usize> {
        let count = |ids: &Vec<i64>| ids.iter().filter(|id| **id == IMAGE_TOKEN_INDEX).count();
        self.input_ids.iter().map(count).collect()
    }

    /// Checks that there are samples, none of them empty, with as many labels as ids, all within the vocabulary.
    ///
    /// # Errors
    /// [`LayoutError`] for the first sample where it is not so.
    pub fn check(&self, vocab: usize) -> Result<(), LayoutError> {
        if self.input_ids.is_empty() {
            return Err(LayoutError::Empty);
        }
        if self.input_ids.len() != self.labels.len() {
            let (ids, labels) = (self.input_ids.len(), self.labels.len());
            return Err(LayoutError::LabelCount { sample: ids.min(labels), ids, labels });
        }
        for (sample, (ids, labels)) in self.input_ids.iter().zip(self.labels).enumerate() {
            if ids.is_empty() {
                return Err(LayoutError::EmptySample { sample });
            }
            if ids.len() != labels.len() {
                let (ids, labels) = (ids.len(), labels.len());
                return Err(LayoutError::LabelCount { sample, ids, labels });
            }
            for (position, (id, label)) in ids.iter().zip(labels).enumerate() {
                for (value, special) in [(*id, IMAGE_TOKEN_INDEX), (*label, IGNORE_INDEX)] {
                    if value != special && !(0..vocab as i64).contains(&value) {
                        return Err(LayoutError::TokenId { sample, position, id: value, vocab });
                    }
                }
            }
        }
        Ok(())
    }
}
