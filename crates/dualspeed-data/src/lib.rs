//! Data for training multimodal language models: from drawings, images and conversations to host batches.
//! Knows nothing of models, tensors or devices.
//!
//! | module | concept |
//! |---|---|
//! | [`text`] | tokenizers, chat templates, token ids with labels |
//! | [`picture`] | loading images with limits, resampling, normalisation, tiles of images of any resolution |
//! | [`question`] | questions whose answers can be scored |
//! | [`example`] | [`Example`]: what every data set yields |
//! | [`source`] | [`ExampleSource`]: a data set; in memory; by name, from other crates |
//! | [`scene`] | generated scenes of emoji with questions, from an embedded atlas |
//! | [`llava_json`] | conversations about images from a JSON or JSONL file |
//! | [`limits`] | what a model takes of an example: lengths in every view, token ids |
//! | [`check`] | a whole data set checked: faults, lengths, pictures, duplicates |
//! | [`on_error`] | what becomes of a run when a sample cannot be used |
//! | [`sampler`] | which examples make step `n`: pure in (seed, step) |
//! | [`batch`] | [`HostBatch`] and [`collate`] |
//! | [`mod@chance`] | the accuracy of always giving the most frequent answer |
//! | [`rng`] | random streams, pure functions of (seed, split, index, purpose) |
//! | [`error`] | what can be wrong with files, records, images and configurations |

// They panic where nobody reads.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod batch;
pub mod chance;
pub mod check;
pub mod error;
pub mod example;
pub mod limits;
pub mod llava_json;
pub mod on_error;
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
    BadRecords, DataError, EncodeError, ImageError, ImageProcessorError, LimitError, RecordProblem,
    SceneConfigError,
};
pub use example::Example;
pub use image::{Rgb, RgbImage};
pub use limits::{SequenceLimits, ViewLength, ViewTokens};
pub use llava_json::{LlavaJson, LlavaJsonConfig};
pub use on_error::OnError;
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
    ExampleSource, FileNotes, LengthBound, MemorySource, Modality, RecordKey, SourceRegistry,
    SourceSpec, source_registry,
};
pub use text::{
    AddedPiece, BpeVocabulary, ChatTemplate, Conversation, Encoded, IGNORE_INDEX,
    IMAGE_TOKEN_INDEX, ImageToken, PieceKind, SentencePieceVocabulary, SpacePrefix, SpecialTokens,
    Template, TextTokenizer, Turn, encode_prompt, encode_training, read_chat_template,
    read_tokenizer,
};
