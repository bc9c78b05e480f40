//! Behaviour of dualspeed-data, one module per concept.

mod chat_templates;
mod images;
mod json;
mod pictures;
mod questions;
mod records;
mod sampler;
mod scenes;
mod sentencepiece;
mod sources;
mod templates;
mod text;
