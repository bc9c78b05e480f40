//! Data for training multimodal language models: from drawings, images and conversations to host batches.
//! Knows nothing of models, tensors or devices.
//!
//! | module | concept |
//! |---|---|
//! | [`text`] | tokenizers, templates, token ids with labels built from segments |
//! | [`picture`] | loading images with limits, resampling, normalisation, tiles of images of any resolution |
//! | [`question`] | questions whose answers can be scored |
//! | [`example`] | [`Example`]: what every data set yields |
//! | [`source`] | [`ExampleSource`]: a data set; in memory; by name, from other crates |
//! | [`scene`] | generated scenes of emoji with questions, from an embedded atlas |
//! | [`llava_json`] | the LLaVA JSON / JSONL format from disk |
//! | [`sampler`] | which examples make step `n`: pure in (seed, step) |
//! | [`batch`] | [`HostBatch`] and [`collate`] |
//! | [`mod@chance`] | the accuracy of always giving the most frequent answer |
//! | [`rng`] | random streams, pure functions of (seed, split, index, purpose) |
//! | [`error`] | what can be wrong with files, records, images and configurations |

pub mod batch;
pub mod chance;
pub mod error;
pub mod example;
pub mod llava_json;
pub mod picture;
pub mod question;
pub mod rng;
pub mod sampler;
pub mod scene;
pub mod source;
pub mod text;

pub use batch::{HostBatch, collate};
pub use chance::{Chance, chance};
pub use error::{
    DataError, EncodeError, ImageError, ImageProcessorError, RecordProblem, SceneConfigError,
};
pub use example::Example;
pub use image::{Rgb, RgbImage};
pub use llava_json::{LlavaJson, LlavaJsonConfig};
pub use picture::{
    FitMode, Grey16, HostImage, ImageLoading, ImageProcessor, LoadedImage, ProcessorFile,
    TileConfig, TiledImage, Tiling, Transparency, check_image_file, decode_image, load_image,
    preprocess_bytes, preprocess_image, printable, read_processor,
};
pub use question::{QuestionKind, QuestionMeta};
pub use sampler::{BatchSampler, Grouping};
pub use scene::{
    Atlas, Background, Bounds, Class, Colour, Question, Scene, SceneConfig, SceneObject,
    SceneSource, Split, Vendor, patch_colours, patch_labels, render, scene_tokenizer,
};
pub use source::{
    ExampleSource, MemorySource, Modality, SourceRegistry, SourceSpec, source_registry,
};
pub use text::{
    BpeVocabulary, Conversation, Encoded, IGNORE_INDEX, IMAGE_TOKEN_INDEX, Segment,
    SentencePieceVocabulary, SpecialTokens, Template, TextTokenizer, Turn, encode_prompt,
    encode_training, read_tokenizer,
};
