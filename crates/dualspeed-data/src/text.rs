//! Conversations to token ids with labels.

mod conversation;
mod encode;
mod sentencepiece;
mod template;
mod tokenizer;
mod vocabulary;

pub use conversation::{Conversation, IMAGE_PLACEHOLDER, Turn};
pub use encode::{Encoded, encode_prompt, encode_training};
pub use sentencepiece::SentencePieceVocabulary;
pub use template::{LLAVA_LLAMA_2_SYSTEM, SMOLLM2_SYSTEM, Segment, Template, VICUNA_SYSTEM};
pub use tokenizer::{SpecialTokens, TextTokenizer};
pub use vocabulary::BpeVocabulary;
