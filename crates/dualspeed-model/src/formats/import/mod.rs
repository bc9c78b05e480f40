//! Other people's checkpoints: nothing is assumed that their files say, and nothing in them is left over.
//!
//! | module | concept |
//! |---|---|
//! | [`config`] | `config.json` of transformers and of LLaVA's own code |
//! | [`checkpoint`] | a directory of configuration and weights, and the model it makes |
//! | `compose` | language model, vision tower, parts and adapter put together |
//! | [`adapter`] | PEFT adapters |
//! | [`parts`] | `non_lora_trainables.bin`, `mm_projector.bin`, `mode_isolator.bin` |
//! | [`tower`] | the vision tower that LLaVA's own layout only names |
//! | [`safetensors`], [`pickle`], [`gguf`] | three formats of named tensors |
//! | [`names`] | names in checkpoints, paths in our model |
//! | [`source`], [`tensor`] | named tensors, read one at a time, on the host; matrices turned on the way |
//! | [`error`] | errors that name file and key |

pub mod adapter;
pub mod checkpoint;
pub mod clip_text;
mod compose;
pub mod config;
mod decoder;
pub mod efficientnet;
pub mod error;
mod fill;
pub mod gguf;
mod json;
pub mod names;
pub mod parts;
pub mod pickle;
mod recognise;
pub mod safetensors;
pub mod source;
pub mod tensor;
pub mod tower;
mod turn;
mod weights;

pub use adapter::Adapter;
pub use checkpoint::{AnyModel, Checkpoint, LoadOptions, LoadReport, NewProjector};
pub use clip_text::read_clip_text;
pub use config::{Architecture, HfConfig, parse_config, read_clip_text_config, read_config};
pub use efficientnet::read_efficientnet;
pub use error::ImportError;
pub use fill::{Loaded, fill_part};
pub use gguf::{Gguf, GgufVocabulary};
pub use parts::{has_parts, load_parts};
pub use tensor::FloatType;
pub use weights::{has_weights, open_weights};
