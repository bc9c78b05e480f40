//! Data for training multimodal language models: from drawings, images and conversations to host batches.
//! Knows nothing of models, tensors or devices.
//!
//! | module | concept |
//! |---|---|
//! | [`example`] | [`Example`], [`HostImage`], [`ExampleSource`]: what every data set yields |
//! | [`text`] | tokenizer, templates, token ids with labels built from segments |
//! | [`picture`] | loading images with limits, resampling, normalisation |
//! | [`anyres`] | grids of tiles for images of any resolution |
//! | [`scene`] | generated scenes of emoji with questions, from the embedded [`atlas`] |
//! | [`llava_json`] | the LLaVA JSON / JSONL format from disk |
//! | [`memory`] | a source held in memory, with or without pixels |
//! | [`sampler`] | which examples make step `n`: pure in (seed, step) |
//! | [`batch`] | [`HostBatch`] and [`collate`] |
//! | [`mod@chance`] | the accuracy of always giving the most frequent answer |
//!
//! Randomness is a pure function of (seed, split, index, purpose), see [`rng`].

pub mod anyres;
pub mod atlas;
pub mod batch;
pub mod chance;
pub mod error;
pub mod example;
pub mod llava_json;
pub mod memory;
pub mod picture;
pub mod rng;
pub mod sampler;
pub mod scene;
pub mod text;

pub use anyres::Tiling;
pub use atlas::{Atlas, Class, Vendor};
pub use batch::{HostBatch, collate};
pub use chance::{Chance, chance};
pub use error::{ConfigError, DataError, EncodeError, ImageError, ProcessorProblem, RecordProblem};
pub use example::{Example, ExampleSource, HostImage, Modality, QuestionKind, QuestionMeta};
pub use llava_json::{LlavaJson, LlavaJsonConfig};
pub use memory::MemorySource;
pub use picture::{
    FitMode, ImageLimits, ImageProcessor, LoadedImage, ProcessorFile, TileConfig, TiledImage,
    decode_image, load_image, preprocess_bytes, preprocess_image, read_processor,
};
pub use sampler::{BatchSampler, Grouping};
pub use scene::{
    Bounds, Colour, Ground, Placed, Question, Scene, SceneConfig, SceneSource, Split,
    patch_colours, patch_labels, render, scene_tokenizer,
};
pub use text::{
    BpeVocabulary, Conversation, Encoded, Segment, SentencePieceVocabulary, SpecialTokens,
    Template, TextTokenizer, Turn, encode_prompt, encode_training,
};

/// Stands once in `input_ids` for each image (LLaVA's `IMAGE_TOKEN_INDEX`).
pub const IMAGE_TOKEN_INDEX: i64 = -200;

/// The label of positions that are not supervised (LLaVA's and PyTorch's `IGNORE_INDEX`).
pub const IGNORE_INDEX: i64 = -100;
