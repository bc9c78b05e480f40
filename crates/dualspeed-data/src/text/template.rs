//! Templates: a conversation to segments.
//!
//! Labels are decided here, per segment, before anything is tokenised. Nothing is ever tokenised twice to find out
//! how long a part of a prompt is: that is how LLaVA's code silently loses its loss when a tokenizer joins two parts
//! differently.

use serde::{Deserialize, Serialize};

use super::conversation::{Conversation, IMAGE_PLACEHOLDER};

/// Vicuna v1's system prompt.
pub const VICUNA_SYSTEM: &str = "A chat between a curious user and an artificial intelligence assistant. \
The assistant gives helpful, detailed, and polite answers to the user's questions.";

/// How a conversation is written out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Template {
    /// Caption pretraining: the images, then the answer and `</s>`; the question and the system prompt are dropped.
    /// (LLaVA's `plain` ends with a newline instead of `</s>`.)
    Plain,
    /// LLaVA 1.5: `SYSTEM USER: question ASSISTANT: answer</s>USER: ...`. A turn with one `<image>` has it moved to
    /// its front and followed by a newline, as LLaVA's `preprocess_multimodal` does.
    VicunaV1,
    /// Compact: `question answer</s>question answer</s>`. A system prompt, if given, goes first. Question marks at
    /// the end of a question are dropped, so that the question's last word stands right before the answer: a small
    /// model learns little from a key word that stands further off.
    #[default]
    Qa,
}

/// A piece of a written-out conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Segment {
    /// The begin-of-sequence token, where the tokenizer has one.
    Bos,
    /// One image.
    Image,
    /// Text the model is not trained to say.
    Prompt(String),
    /// Text the model is trained to say. A space stands before it, unless it opens the sequence.
    Answer {
        /// The answer, trimmed.
        text: String,
        /// Whether text stands before it that it must be set off from by a space.
        spaced: bool,
    },
    /// The end-of-sequence token after an answer; supervised.
    Eos,
}

impl Template {
    /// Writes a conversation out. An open last turn ends where the model is to speak.
    pub fn segments(self, conversation: &Conversation) -> Vec<Segment> {
        let mut segments = vec![Segment::Bos];
        let system = conversation.system.as_deref();
        match self {
            Self::Plain => {
                for turn in &conversation.turns {
                    let images = turn.user.matches(IMAGE_PLACEHOLDER).count();
                    segments.extend(std::iter::repeat_n(Segment::Image, images));
                    push_answer(&mut segments, turn.assistant.as_deref(), false);
                }
            }
            Self::VicunaV1 => {
                let mut head = match system.unwrap_or(VICUNA_SYSTEM) {
                    "" => String::new(),
                    system => format!("{system} "),
                };
                for turn in &conversation.turns {
                    let prompt = format!("{head}USER: {} ASSISTANT:", image_first(&turn.user));
                    push_prompt(&mut segments, &prompt);
                    push_answer(&mut segments, turn.assistant.as_deref(), true);
                    head.clear();
                }
            }
            Self::Qa => {
                push_prompt(&mut segments, system.unwrap_or_default());
                for turn in &conversation.turns {
                    let unmarked = |c: char| c == '?' || c.is_whitespace();
                    push_prompt(&mut segments, turn.user.trim_start().trim_end_matches(unmarked));
                    push_answer(&mut segments, turn.assistant.as_deref(), true);
                }
            }
        }
        segments
    }
}

fn image_first(user: &str) -> String {
    match user.split_once(IMAGE_PLACEHOLDER) {
        Some((before, after)) if !after.contains(IMAGE_PLACEHOLDER) => {
            let rest = format!("{before}{after}");
            format!("{IMAGE_PLACEHOLDER}\n{}", rest.trim())
        }
        _ => user.trim().to_string(),
    }
}

fn push_prompt(segments: &mut Vec<Segment>, text: &str) {
    for (i, piece) in text.split(IMAGE_PLACEHOLDER).enumerate() {
        if i > 0 {
            segments.push(Segment::Image);
        }
        if !piece.is_empty() {
            segments.push(Segment::Prompt(piece.to_string()));
        }
    }
}

fn push_answer(segments: &mut Vec<Segment>, answer: Option<&str>, spaced: bool) {
    if let Some(answer) = answer {
        segments.push(Segment::Answer { text: answer.trim().to_string(), spaced });
        segments.push(Segment::Eos);
    }
}
