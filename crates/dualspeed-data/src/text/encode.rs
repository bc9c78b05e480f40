//! Segments to ids and labels.

use std::ops::Range;

use super::conversation::Conversation;
use super::template::{Segment, Template};
use super::tokenizer::TextTokenizer;
use crate::error::EncodeError;

/// Stands once in `input_ids` for each image (LLaVA's `IMAGE_TOKEN_INDEX`).
pub const IMAGE_TOKEN_INDEX: i64 = -200;

/// The label of positions that are not supervised (LLaVA's and PyTorch's `IGNORE_INDEX`).
pub const IGNORE_INDEX: i64 = -100;

/// Token ids with labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, with `IMAGE_TOKEN_INDEX` once per image.
    pub input_ids: Vec<i64>,
    /// The id where it is supervised (answers and the `</s>` after them), else `IGNORE_INDEX`.
    pub labels: Vec<i64>,
    /// Where each answer lies in `input_ids`, its `</s>` included; answers cut off entirely are missing at the end.
    pub answers: Vec<Range<usize>>,
}

/// Encodes a conversation for training. `max_length` counts ids, an image as one.
///
/// # Errors
/// If a turn has no answer, if truncation would drop an image or leave nothing supervised, or if the tokenizer fails.
pub fn encode_training(
    conversation: &Conversation,
    template: Template,
    tokenizer: &TextTokenizer,
    max_length: Option<usize>,
) -> Result<Encoded, EncodeError> {
    if let Some(turn) = conversation.turns.iter().position(|turn| turn.assistant.is_none()) {
        return Err(EncodeError::OpenTurn { turn });
    }
    let mut encoded = encode_segments(&template.segments(conversation), tokenizer)?;
    if let Some(max_length) = max_length {
        truncate(&mut encoded, max_length)?;
    }
    if encoded.labels.iter().all(|&label| label == IGNORE_INDEX) {
        return Err(EncodeError::NothingSupervised { length: encoded.labels.len(), max_length });
    }
    Ok(encoded)
}

/// Encodes a conversation whose last turn is open, for generation: the ids end where the model is to speak.
///
/// # Errors
/// If an earlier turn is open, or if the tokenizer fails.
pub fn encode_prompt(
    conversation: &Conversation,
    template: Template,
    tokenizer: &TextTokenizer,
) -> Result<Vec<i64>, EncodeError> {
    let open = conversation.turns.iter().position(|turn| turn.assistant.is_none());
    match open {
        Some(turn) if turn + 1 < conversation.turns.len() => Err(EncodeError::OpenTurn { turn }),
        _ => Ok(encode_segments(&template.segments(conversation), tokenizer)?.input_ids),
    }
}

fn encode_segments(
    segments: &[Segment],
    tokenizer: &TextTokenizer,
) -> Result<Encoded, EncodeError> {
    let mut encoded = Encoded::default();
    for segment in segments {
        let start = encoded.input_ids.len();
        let supervised = match segment {
            Segment::Bos => {
                encoded.input_ids.extend(tokenizer.bos_id());
                false
            }
            Segment::Image => {
                encoded.input_ids.push(IMAGE_TOKEN_INDEX);
                false
            }
            Segment::Prompt(text) => {
                encoded.input_ids.extend(tokenizer.encode(text)?);
                false
            }
            Segment::Answer { text, spaced } => {
                let ids =
                    if *spaced { tokenizer.encode_word(text) } else { tokenizer.encode(text) };
                encoded.input_ids.extend(ids?);
                encoded.answers.push(start..encoded.input_ids.len());
                true
            }
            Segment::Token { name, supervised } => {
                let id = tokenizer.token_to_id(name).ok_or_else(|| EncodeError::Vocabulary {
                    what: "tokenizer".into(),
                    reason: format!(
                        "the template's token {name:?} is not in the vocabulary; choose the template the model was \
                         trained with"
                    ),
                })?;
                encoded.input_ids.push(id);
                if let Some(answer) = encoded.answers.last_mut().filter(|_| *supervised) {
                    answer.end += 1;
                }
                *supervised
            }
            Segment::Eos => {
                encoded.input_ids.push(tokenizer.eos_id());
                if let Some(answer) = encoded.answers.last_mut() {
                    answer.end += 1;
                }
                true
            }
        };
        let added = &encoded.input_ids[start..];
        if supervised {
            encoded.labels.extend(added);
        } else {
            encoded.labels.extend(added.iter().map(|_| IGNORE_INDEX));
        }
    }
    Ok(encoded)
}

fn truncate(encoded: &mut Encoded, max_length: usize) -> Result<(), EncodeError> {
    let last_image = encoded.input_ids.iter().rposition(|&id| id == IMAGE_TOKEN_INDEX);
    if let Some(position) = last_image.filter(|&position| position >= max_length) {
        return Err(EncodeError::ImageTruncated { position, max_length });
    }
    encoded.input_ids.truncate(max_length);
    encoded.labels.truncate(max_length);
    encoded.answers.retain_mut(|answer| {
        answer.end = answer.end.min(max_length);
        answer.start < answer.end
    });
    Ok(())
}
