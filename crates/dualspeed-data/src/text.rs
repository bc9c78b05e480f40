//! Conversations to token ids with labels.

mod conversation;
mod encode;
mod sentencepiece;
mod template;
mod tokenizer;
mod tokenizer_file;
mod vocabulary;

pub use conversation::{
    Conversation, IMAGE_PLACEHOLDER, Turn, escape_images, plain_text, with_literal_images,
};
pub use encode::{Encoded, IGNORE_INDEX, IMAGE_TOKEN_INDEX, encode_prompt, encode_training};
pub use sentencepiece::SentencePieceVocabulary;
pub use template::{LLAVA_LLAMA_2_SYSTEM, SMOLLM2_SYSTEM, Segment, Template, VICUNA_SYSTEM};
pub use tokenizer::{SpecialTokens, TextTokenizer};
pub use tokenizer_file::read_tokenizer;
pub use vocabulary::BpeVocabulary;
