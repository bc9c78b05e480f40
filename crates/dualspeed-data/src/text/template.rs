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

/// The system prompt of LLaVA's `llava_llama_2`.
pub const LLAVA_LLAMA_2_SYSTEM: &str = "You are a helpful language and vision assistant. \
You are able to understand the visual content that the user provides, \
and assist the user with a variety of tasks using natural language.";

/// The system prompt that SmolLM2's chat template puts where none is given.
pub const SMOLLM2_SYSTEM: &str =
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face";

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
    /// Llama 2 chat: `[INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\nquestion [/INST] answer </s><s>[INST] ...`.
    LlavaLlama2,
    /// SmolLM2 and others: `<|im_start|>system\nSYSTEM<|im_end|>\n<|im_start|>user\n...`. The end token after an answer
    /// is supervised, the newline after it is not.
    Chatml,
    /// Mistral Instruct, as in LLaVA-NeXT: `[INST] question [/INST] answer </s>[INST] ...`, without a system prompt of
    /// its own.
    MistralInstruct,
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
        /// The answer, trimmed; some templates put a space after it.
        text: String,
        /// Whether text stands before it that it must be set off from by a space.
        spaced: bool,
    },
    /// The end-of-sequence token after an answer; supervised.
    Eos,
    /// A token that no text can spell, by name.
    Token {
        /// Name of the token in the vocabulary.
        name: &'static str,
        /// Whether the model is trained to say it.
        supervised: bool,
    },
}

impl Template {
    /// Finds the template that a chat template in Jinja, as it stands in `tokenizer_config.json` or a GGUF file, spells out.
    pub fn recognise(jinja: &str) -> Option<Self> {
        let known = [
            ("<|im_start|>", Self::Chatml),
            ("<<SYS>>", Self::LlavaLlama2),
            ("[INST]", Self::MistralInstruct),
            ("ASSISTANT:", Self::VicunaV1),
        ];
        known.into_iter().find_map(|(mark, template)| jinja.contains(mark).then_some(template))
    }

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
            Self::LlavaLlama2 => {
                instructions(&mut segments, conversation, LLAVA_LLAMA_2_SYSTEM, true);
            }
            Self::MistralInstruct => instructions(&mut segments, conversation, "", false),
            Self::Chatml => {
                // Its start mark is the begin token already.
                segments.clear();
                match system.unwrap_or(SMOLLM2_SYSTEM) {
                    "" => {}
                    system => push_message(&mut segments, &format!("system\n{system}")),
                }
                for turn in &conversation.turns {
                    push_message(&mut segments, &format!("user\n{}", image_first(&turn.user)));
                    segments.push(Segment::Token { name: IM_START, supervised: false });
                    segments.push(Segment::Prompt("assistant\n".into()));
                    if let Some(answer) = &turn.assistant {
                        let text = answer.trim().to_string();
                        segments.push(Segment::Answer { text, spaced: false });
                        segments.push(Segment::Token { name: IM_END, supervised: true });
                        segments.push(Segment::Prompt("\n".into()));
                    }
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

const IM_START: &str = "<|im_start|>";
const IM_END: &str = "<|im_end|>";

/// `<|im_start|>text<|im_end|>` and a newline, none of it supervised.
fn push_message(segments: &mut Vec<Segment>, text: &str) {
    segments.push(Segment::Token { name: IM_START, supervised: false });
    push_prompt(segments, text);
    segments.push(Segment::Token { name: IM_END, supervised: false });
    segments.push(Segment::Prompt("\n".into()));
}

/// Llama 2's and Mistral's instructions. As LLaVA writes them, a space stands between the answer and its end token.
///
/// Source: `SeparatorStyle.LLAMA_2` in LLaVA's conversation.py.
fn instructions(segments: &mut Vec<Segment>, conversation: &Conversation, own: &str, begin: bool) {
    for (index, turn) in conversation.turns.iter().enumerate() {
        let head = match (index, conversation.system.as_deref().unwrap_or(own)) {
            (0, system) if !system.is_empty() => format!("<<SYS>>\n{system}\n<</SYS>>\n\n"),
            _ => String::new(),
        };
        if index > 0 && begin {
            segments.push(Segment::Bos);
        }
        push_prompt(segments, &format!("[INST] {head}{} [/INST]", image_first(&turn.user)));
        if let Some(answer) = &turn.assistant {
            segments.push(Segment::Answer { text: format!("{} ", answer.trim()), spaced: true });
            segments.push(Segment::Eos);
        }
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
