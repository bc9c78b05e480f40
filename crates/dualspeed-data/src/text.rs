//! Conversations to token ids with labels.

mod conversation;
mod encode;
mod template;
mod tokenizer;

pub use conversation::{Conversation, IMAGE_PLACEHOLDER, Turn};
pub use encode::{Encoded, encode_prompt, encode_training};
pub use template::{Segment, Template, VICUNA_SYSTEM};
pub use tokenizer::{SpecialTokens, TextTokenizer};
