//! Conversations to token ids with labels.

mod builtin;
mod chat_template;
mod conversation;
mod date;
mod encode;
mod ids;
mod image_token;
mod jinja;
mod marks;
mod render;
mod rendered_text;
mod sentencepiece;
mod sentencepiece_file;
mod template;
mod template_file;
mod tokenizer;
mod tokenizer_file;
mod vocabulary;

pub use chat_template::ChatTemplate;
pub use conversation::{
    Conversation, IMAGE_PLACEHOLDER, Turn, escape_images, plain_text, with_literal_images,
};
pub use encode::{Encoded, encode_prompt, encode_training};
pub use ids::{IGNORE_INDEX, IMAGE_TOKEN_INDEX};
pub use image_token::ImageToken;
pub use sentencepiece::{AddedPiece, PieceKind, SentencePieceVocabulary, SpacePrefix};
pub use template::{Template, VICUNA_SYSTEM};
pub use template_file::read_chat_template;
pub use tokenizer::{SpecialTokens, TextTokenizer};
pub use tokenizer_file::read_tokenizer;
pub use vocabulary::BpeVocabulary;
