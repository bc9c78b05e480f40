//! Mistakes in one record of a data set, each with a name of its kind.

use std::sync::Arc;

use super::limit::LimitError;
use super::{EncodeError, ImageError};

/// A mistake in one record of a data set.
#[derive(Debug, thiserror::Error)]
pub enum RecordProblem {
    /// The record is not well-formed JSON.
    #[error("malformed JSON at line {line}, column {column}: {reason}")]
    Json {
        /// Line of the file, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser said.
        reason: String,
    },
    /// A role that is neither a human's, nor a model's, nor the system's.
    #[error(
        "turn {turn} is from {role:?}; use \"human\" or \"user\", \"gpt\" or \"assistant\", and \"system\" for the first turn"
    )]
    UnknownRole {
        /// Number of the turn, from 0.
        turn: usize,
        /// The role found.
        role: String,
    },
    /// Turns do not alternate human, gpt, human, gpt, ...
    #[error(
        "turn {turn} is from {role:?} where a turn from {expected:?} is due; turns must alternate"
    )]
    OutOfTurn {
        /// Number of the turn, from 0.
        turn: usize,
        /// The role found.
        role: String,
        /// The role that is due.
        expected: &'static str,
    },
    /// The last human turn is not answered, or there is no turn at all.
    #[error(
        "the conversation has no answer to its last question; add a turn from \"gpt\" or remove the record"
    )]
    NoAnswer,
    /// An answer is empty or white space.
    #[error("turn {turn} is an empty answer; there is nothing to learn from it, remove it")]
    EmptyAnswer {
        /// Number of the turn, from 0.
        turn: usize,
    },
    /// `<image>` occurs where no image can stand.
    #[error(
        "turn {turn} from {role:?} contains <image>, and images belong to human turns; where the text itself is meant, write \\<image> (in JSON \"\\\\<image>\")"
    )]
    PlaceholderInAnswer {
        /// Number of the turn, from 0.
        turn: usize,
        /// The role of the turn.
        role: String,
    },
    /// The number of `<image>` placeholders is not the number of images.
    #[error(
        "the conversation has {placeholders} <image> and the record names {files} image file(s); make them equal (where the text <image> itself is meant, write \\<image>, in JSON \"\\\\<image>\")"
    )]
    PlaceholderMismatch {
        /// `<image>` in the human turns.
        placeholders: usize,
        /// Entries of `image` or `images`.
        files: usize,
    },
    /// A key holds data that would have no effect.
    #[error("the key {key:?} holds data that has no effect here; {advice}")]
    IgnoredData {
        /// The key, with a path where it lies inside a turn.
        key: String,
        /// What to do about it.
        advice: String,
    },
    /// Two keys say the same thing.
    #[error("the record has both {first:?} and {second:?}; keep one of them")]
    Twice {
        /// A key.
        first: String,
        /// The other.
        second: String,
    },
    /// The record lacks a key or has a value of the wrong type.
    #[error(
        "{reason}; a record looks like {{\"id\": .., \"image\": \"a.jpg\", \"conversations\": [{{\"from\": \"human\", \"value\": \"<image>\\n..\"}}, {{\"from\": \"gpt\", \"value\": \"..\"}}]}} or {{\"images\": [\"a.jpg\"], \"messages\": [{{\"role\": \"user\", \"content\": \"<image>..\"}}, {{\"role\": \"assistant\", \"content\": \"..\"}}]}}"
    )]
    Shape {
        /// What is wrong.
        reason: String,
    },
    /// An image is named by an address.
    #[error(
        "the image {url:?} is an address; nothing is fetched here, download it and name the file"
    )]
    RemoteImage {
        /// The address.
        url: String,
    },
    /// An image in the record itself is not Base64.
    #[error("image {index} of the record is not valid Base64: {reason}")]
    Base64 {
        /// Number of the image, from 0.
        index: usize,
        /// What the decoder said.
        reason: String,
    },
    /// The record is not the one that was there when the file was opened.
    #[error("the record has changed since the data set was opened; do not write to a file in use")]
    Changed,
    /// An image of the record could not be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image that several records show could not be used.
    #[error(transparent)]
    SharedImage(Arc<ImageError>),
    /// The conversation could not be turned into ids and labels.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The model cannot take the example.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// An error of a data set of another crate.
    #[error("{0}")]
    Other(String),
}

impl RecordProblem {
    /// Name of the kind of mistake, as reports count them.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Json { .. } => "malformed JSON",
            Self::UnknownRole { .. } => "unknown role",
            Self::OutOfTurn { .. } => "turn out of order",
            Self::NoAnswer => "no answer",
            Self::EmptyAnswer { .. } => "empty answer",
            Self::PlaceholderInAnswer { .. } => "<image> outside of a human turn",
            Self::PlaceholderMismatch { .. } => "<image> and images differ in number",
            Self::IgnoredData { .. } => "key with data that has no effect",
            Self::Twice { .. } => "two keys for one thing",
            Self::Shape { .. } => "wrong shape",
            Self::RemoteImage { .. } => "image is an address",
            Self::Base64 { .. } => "image is not Base64",
            Self::Changed => "changed while in use",
            Self::Image(error) => error.kind(),
            Self::SharedImage(error) => error.kind(),
            Self::Encode(error) => error.kind(),
            Self::Limit(error) => error.kind(),
            Self::Other(_) => "other",
        }
    }
}
