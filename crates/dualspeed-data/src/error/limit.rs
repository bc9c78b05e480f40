//! An example that the model cannot take.

/// An example that the model cannot take.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// A token id without a row in the embedding.
    #[error(
        "token id {id} at position {position} is outside the embedding of {vocab_size} rows; the text was made with another \
         tokenizer than the model's, or with one that tokens were added to"
    )]
    TokenId {
        /// Index in `input_ids`.
        position: usize,
        /// The id.
        id: i64,
        /// Rows of the embedding.
        vocab_size: usize,
    },
    /// Truncation leaves nothing to learn from.
    #[error(
        "in {view} view the example has {length} tokens, and max_length {max_length} cuts off all {supervised} supervised ones; \
         raise model.max_length, or shorten the example or remove it"
    )]
    AnswersCutOff {
        /// Name of the view.
        view: String,
        /// Length in that view, visual tokens and isolator included.
        length: usize,
        /// The limit.
        max_length: usize,
        /// Supervised tokens without truncation.
        supervised: usize,
    },
    /// Nothing is supervised, however long the sequence may be.
    #[error("none of its {length} tokens is supervised; there is nothing to learn from it")]
    NothingSupervised {
        /// Token ids.
        length: usize,
    },
}

impl LimitError {
    /// Name of the kind of mistake, as reports count them.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::TokenId { .. } => "token id outside of the embedding",
            Self::AnswersCutOff { .. } => "answers cut off by max_length",
            Self::NothingSupervised { .. } => "no supervised token",
        }
    }
}
