//! Other people's checkpoints: nothing is assumed that their files say, and nothing in them is left over.
//!
//! | module | concept |
//! |---|---|
//! | [`config`] | `config.json` of transformers and of LLaVA's own code |
//! | [`checkpoint`] | a directory of configuration and weights, and the model it makes |
//! | [`adapter`] | PEFT adapters, `non_lora_trainables.bin`, `mm_projector.bin`, `mode_isolator.bin` |
//! | [`safetensors`], [`pickle`], [`gguf`] | three formats of named tensors |
//! | [`names`] | names in checkpoints, paths in our model |
//! | [`source`], [`tensor`] | named tensors, read one at a time, on the host; matrices turned on the way |
//! | [`error`] | errors that name file and key |

pub mod adapter;
pub mod checkpoint;
pub mod clip_text;
pub mod config;
mod decoder;
pub mod efficientnet;
pub mod error;
mod fill;
pub mod gguf;
mod json;
pub mod names;
pub mod pickle;
pub mod safetensors;
pub mod source;
pub mod tensor;
mod turn;

pub use adapter::{Adapter, load_extra};
pub use checkpoint::{AnyModel, Checkpoint, LoadOptions, LoadReport, open_weights};
pub use clip_text::read_clip_text;
pub use config::{Architecture, HfConfig, parse_config, read_clip_text_config, read_config};
pub use efficientnet::read_efficientnet;
pub use error::ImportError;
pub use fill::Loaded;
pub use gguf::{Gguf, GgufVocabulary};
pub use tensor::FloatType;
