//! Errors: what went wrong, where (file, line, record, id), and what to do about it.

use std::path::PathBuf;

use dualspeed_core::RegistryError;

/// Anything a data source can report.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A configuration of scenes makes no sense.
    #[error(transparent)]
    Scenes(#[from] SceneConfigError),
    /// A data set of another crate is not known or cannot be made.
    #[error(transparent)]
    Source(#[from] RegistryError),
    /// A file could not be read.
    #[error("cannot read {}: {source}; check the path and its permissions", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A data file is not well-formed JSON.
    #[error(
        "{}:{line}:{column}: malformed JSON: {reason}; the file must be a JSON array of records, or one record a line",
        path.display()
    )]
    Json {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What the parser said.
        reason: String,
    },
    /// A well-formed record that cannot be used.
    #[error("{}:{line}: record {record} (id {id:?}): {problem}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// Line on which the record starts, from 1.
        line: usize,
        /// Number of the record, from 0.
        record: usize,
        /// The record's `id`.
        id: String,
        /// What is wrong with it.
        problem: Box<RecordProblem>,
    },
    /// An image could not be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// An image processor cannot be used.
    #[error(transparent)]
    Processor(#[from] ImageProcessorError),
    /// A conversation could not be turned into ids and labels.
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// A source has no example of this index.
    #[error("index {index} is out of range: the source has {len} examples")]
    OutOfRange {
        /// The index asked for.
        index: usize,
        /// The length of the source.
        len: usize,
    },
    /// The embedded atlas is broken (a build problem: run scripts/build_atlas.py).
    #[error("the embedded emoji atlas is broken: {reason}; rebuild it with scripts/build_atlas.py")]
    Atlas {
        /// What is wrong.
        reason: String,
    },
    /// An error of a data set of another crate.
    #[error(transparent)]
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// A configuration of scenes makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct SceneConfigError {
    /// The field, as written in the configuration.
    pub field: &'static str,
    /// What is wrong with it and what is allowed.
    pub reason: String,
}

/// An image processor cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImageProcessorError {
    /// A number is out of range.
    #[error("image processor: {field} = {value} cannot be used: expected {expected}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// Value of the field.
        value: String,
        /// What it may be, in words.
        expected: String,
    },
    /// The file in a model's directory asks for what is not done here.
    #[error("{}: {problem}; give --fit to choose one of ours", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

/// A mistake in one record of a data file.
#[derive(Debug, thiserror::Error)]
pub enum RecordProblem {
    /// `from` is neither a human nor a model.
    #[error("turn {turn} is from {role:?}; use \"human\" or \"gpt\"")]
    UnknownRole {
        /// Number of the turn in `conversations`, from 0.
        turn: usize,
        /// The role found.
        role: String,
    },
    /// Turns do not alternate human, gpt, human, gpt, ...
    #[error(
        "turn {turn} is from {role:?} where a turn from {expected:?} is due; turns must alternate, human first"
    )]
    OutOfTurn {
        /// Number of the turn in `conversations`, from 0.
        turn: usize,
        /// The role found.
        role: String,
        /// The role that is due.
        expected: &'static str,
    },
    /// The last human turn is not answered, or there is no turn at all.
    #[error(
        "the conversation has no answer to its last question; add a turn from \"gpt\" or remove the record"
    )]
    NoAnswer,
    /// An answer is empty or white space.
    #[error("turn {turn} is an empty answer; there is nothing to learn from it, remove it")]
    EmptyAnswer {
        /// Number of the turn in `conversations`, from 0.
        turn: usize,
    },
    /// `<image>` occurs in an answer.
    #[error("turn {turn} is an answer that contains <image>; images belong to human turns")]
    PlaceholderInAnswer {
        /// Number of the turn in `conversations`, from 0.
        turn: usize,
    },
    /// The number of `<image>` placeholders is not the number of files.
    #[error(
        "the conversation has {placeholders} <image> and the record names {files} image file(s); make them equal"
    )]
    PlaceholderMismatch {
        /// `<image>` in the human turns.
        placeholders: usize,
        /// Entries of `image`.
        files: usize,
    },
    /// The record lacks a field or has one of the wrong type.
    #[error(
        "{reason}; a record looks like {{\"id\": .., \"image\": \"a.jpg\", \"conversations\": [{{\"from\": \"human\", \"value\": \"<image>\\n..\"}}, {{\"from\": \"gpt\", \"value\": \"..\"}}]}}"
    )]
    Shape {
        /// What the parser said.
        reason: String,
    },
    /// An image of the record could not be used.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The conversation could not be turned into ids and labels.
    #[error(transparent)]
    Encode(#[from] EncodeError),
}

/// A conversation could not be turned into ids and labels.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// The tokenizer failed on a piece of text.
    #[error("the tokenizer failed on {text:?}: {reason}")]
    Tokenizer {
        /// The beginning of the text.
        text: String,
        /// What the tokenizer said.
        reason: String,
    },
    /// A tokenizer file cannot be used.
    #[error("{what}: {reason}")]
    Vocabulary {
        /// The file, or what was being built.
        what: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// Truncation would drop an image.
    #[error(
        "image placeholder at token {position} lies beyond max_length {max_length}; raise max_length or shorten the text before the image"
    )]
    ImageTruncated {
        /// Position of the placeholder in `input_ids`.
        position: usize,
        /// The limit.
        max_length: usize,
    },
    /// Nothing is left to learn from.
    #[error(
        "no supervised token within the {length} tokens kept (max_length {max_length:?}); raise max_length or remove the example"
    )]
    NothingSupervised {
        /// Length after truncation.
        length: usize,
        /// The limit, if there is one.
        max_length: Option<usize>,
    },
    /// A turn before the last one has no answer.
    #[error("turn {turn} has no answer; only the last turn of a prompt may be open")]
    OpenTurn {
        /// Number of the turn, from 0.
        turn: usize,
    },
}

/// An image could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The file could not be read.
    #[error(
        "cannot read image {name}: {source}; check the image folder and the name in the record"
    )]
    Read {
        /// The file.
        name: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// Something that is no file, which is not opened: a named pipe would never end.
    #[error("image {name} is {kind}; give an ordinary file")]
    NotAFile {
        /// The path.
        name: String,
        /// What it is, in words.
        kind: &'static str,
    },
    /// The file is larger than allowed; it was not read.
    #[error(
        "image {name} has {bytes} bytes, more than the limit of {max_bytes}; is it an image? Raise max_bytes if so (`data.train.images` of a configuration, --max-bytes)"
    )]
    TooManyBytes {
        /// The file.
        name: String,
        /// Its size.
        bytes: u64,
        /// The limit.
        max_bytes: u64,
    },
    /// There are no bytes.
    #[error("image {name} is empty (0 bytes); fetch it again")]
    EmptyFile {
        /// The file.
        name: String,
    },
    /// The bytes are of no image format known here.
    #[error("image {name} is in no known format; use PNG, JPEG, WebP, GIF or BMP")]
    UnknownFormat {
        /// The file.
        name: String,
    },
    /// The header announces more pixels than allowed; nothing was decoded.
    #[error(
        "image {name} has {width}x{height} pixels, more than the limit of {max_side} a side or {max_pixels} in all; scale it down, or raise max_side and max_pixels (`data.train.images` of a configuration, --max-side, --max-pixels)"
    )]
    TooLarge {
        /// The file.
        name: String,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
        /// Limit on either side.
        max_side: u32,
        /// Limit on width x height.
        max_pixels: u64,
    },
    /// Width or height is 0.
    #[error("image {name} has zero size ({width}x{height}); remove it from the data")]
    ZeroSize {
        /// The file.
        name: String,
        /// Width in pixels.
        width: u32,
        /// Height in pixels.
        height: u32,
    },
    /// An image of any resolution cannot be cut into tiles.
    #[error(
        "none of image_grid_pinpoints {pinpoints:?} is a grid of whole tiles of {tile} pixels; give multiples of it"
    )]
    NoGrid {
        /// The resolutions, `[height, width]` in pixels.
        pinpoints: Vec<[usize; 2]>,
        /// Side of a tile, in pixels.
        tile: usize,
    },
    /// The file ends before the image does.
    #[error("image {name} is truncated: {reason}; fetch it again")]
    Truncated {
        /// The file.
        name: String,
        /// What was missing.
        reason: String,
    },
    /// The decoder failed.
    #[error("image {name} cannot be decoded: {reason}; convert it to an ordinary PNG or JPEG")]
    Decode {
        /// The file.
        name: String,
        /// What the decoder said.
        reason: String,
    },
}
