//! Conversations to ids and labels.
//!
//! The places of answers are found in the text that a template writes, before anything is tokenized, and the tokens tell
//! where in that text they stand. Nothing is ever tokenized twice to find out how long a part of a prompt is: that is how
//! LLaVA's code silently loses its loss when a tokenizer joins two parts differently.

use std::borrow::Borrow;
use std::ops::Range;

use super::conversation::Conversation;
use super::ids::{IGNORE_INDEX, IMAGE_TOKEN_INDEX};
use super::render::{Rendered, render};
use super::rendered_text::PlacedToken;
use super::template::Template;
use super::tokenizer::TextTokenizer;
use crate::error::EncodeError;

/// Token ids with labels.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// Token ids, with `IMAGE_TOKEN_INDEX` once per image.
    pub input_ids: Vec<i64>,
    /// The id where it is supervised (answers and the end token after them), else `IGNORE_INDEX`.
    pub labels: Vec<i64>,
    /// Where each answer lies in `input_ids`, its end token included; answers cut off entirely are missing at the end.
    pub answers: Vec<Range<usize>>,
}

/// Encodes a conversation for training. `max_length` counts ids, an image as one.
///
/// # Errors
/// If a turn has no answer, if the template cannot be followed, if truncation would drop an image or leave nothing
/// supervised, or if the tokenizer fails.
pub fn encode_training(
    conversation: &Conversation,
    template: impl Borrow<Template>,
    tokenizer: &TextTokenizer,
    max_length: Option<usize>,
) -> Result<Encoded, EncodeError> {
    if let Some(turn) = conversation.turns.iter().position(|turn| turn.assistant.is_none()) {
        return Err(EncodeError::OpenTurn { turn });
    }
    let mut encoded = encode(&render(conversation, template.borrow(), tokenizer)?, tokenizer)?;
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
/// If an earlier turn is open, if the template cannot be followed, or if the tokenizer fails.
pub fn encode_prompt(
    conversation: &Conversation,
    template: impl Borrow<Template>,
    tokenizer: &TextTokenizer,
) -> Result<Vec<i64>, EncodeError> {
    let open = conversation.turns.iter().position(|turn| turn.assistant.is_none());
    match open {
        Some(turn) if turn + 1 < conversation.turns.len() => Err(EncodeError::OpenTurn { turn }),
        _ => Ok(encode(&render(conversation, template.borrow(), tokenizer)?, tokenizer)?.input_ids),
    }
}

fn encode(rendered: &Rendered, tokenizer: &TextTokenizer) -> Result<Encoded, EncodeError> {
    let tokens = tokenizer.encode_rendered(&rendered.text)?;
    let mut encoded = Encoded::default();
    encoded.input_ids.extend(tokens.iter().map(|token| token.id));
    encoded.labels.resize(tokens.len(), IGNORE_INDEX);
    for answer in &rendered.answers {
        // A token that lies in an answer only in part is learned whole.
        let within = |token: &PlacedToken| {
            token.start < answer.end && token.end.max(token.start + 1) > answer.start
        };
        let first = tokens.iter().position(within);
        let last = tokens.iter().rposition(within);
        let (Some(first), Some(last)) = (first, last) else { continue };
        for index in first..=last {
            encoded.labels[index] = encoded.input_ids[index];
        }
        encoded.answers.push(first..last + 1);
    }
    if rendered.open_end {
        let end = tokenizer.eos_id();
        encoded.input_ids.push(end);
        encoded.labels.push(end);
        if let Some(last) = encoded.answers.last_mut() {
            last.end = encoded.input_ids.len();
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
