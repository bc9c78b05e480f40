//! A model with tokenizer, template, image processor and end tokens: from a run directory, a checkpoint in one of the
//! published formats, or a GGUF file, to text generated from a prompt and images.

mod generate;
mod gguf_tokenizer;
mod llava_text;
mod load;
mod model;
mod options;
mod save;
mod streamer;
mod text_files;

use std::path::PathBuf;

use dualspeed_data::{ImageProcessor, Template, TextTokenizer};
use dualspeed_ops::Backend;

pub use generate::{GenerationOutput, GenerationRequest, GenerationSettings};
pub use gguf_tokenizer::gguf_tokenizer;
pub use model::GenerativeModel;
pub use options::PipelineOptions;
pub use save::dtype_to_read;

/// A model with what turns prompts and images into its inputs, and its outputs into text.
#[derive(Debug)]
pub struct Pipeline<B: Backend> {
    /// The model, with or without vision.
    pub model: GenerativeModel<B>,
    /// The tokenizer of prompts and answers.
    pub tokenizer: TextTokenizer,
    /// How conversations are written out.
    pub template: Template,
    /// The system prompt: `None` is the template's own.
    pub system: Option<String>,
    /// How images become pixel values.
    pub processor: ImageProcessor,
    /// Token ids that end an answer.
    pub eos_token_ids: Vec<i64>,
    /// The id that stands for visual tokens in transformers' prompts.
    pub image_token_id: Option<i64>,
    /// The directory that the tokenizer's files are from, if it is one.
    pub text_files: Option<PathBuf>,
}
