//! Errors: what went wrong, where (file, line, record, id), and what to do about it.

mod limit;
mod record;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use dualspeed_core::RegistryError;

pub use limit::LimitError;
pub use record::RecordProblem;

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
    /// A well-formed example of a data set without files that cannot be used.
    #[error("example {index} (id {id:?}): {problem}")]
    Example {
        /// Its index.
        index: usize,
        /// Its id.
        id: String,
        /// What is wrong with it.
        problem: Box<RecordProblem>,
    },
    /// Several records cannot be used.
    #[error("{0}")]
    Several(BadRecords),
    /// An error that was met before, of an example that was kept without its content.
    #[error(transparent)]
    Shared(Arc<DataError>),
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

impl DataError {
    /// What is wrong with the record, where the error is about one.
    pub fn problem(&self) -> Option<&RecordProblem> {
        match self {
            Self::Record { problem, .. } | Self::Example { problem, .. } => Some(problem),
            Self::Shared(error) => error.problem(),
            _ => None,
        }
    }

    /// Name of the kind of mistake, as reports count them.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Json { .. } => "malformed JSON",
            Self::Read { .. } => "unreadable file",
            Self::Image(error) => error.kind(),
            Self::Encode(error) => error.kind(),
            Self::Shared(error) => error.kind(),
            error => error.problem().map_or("other", RecordProblem::kind),
        }
    }
}

/// Records that cannot be used: the first ones in full, the others as a number.
#[derive(Debug)]
pub struct BadRecords {
    /// What they are records of: a file, or a section of the configuration.
    pub what: String,
    /// The first ones.
    pub listed: Vec<DataError>,
    /// How many there are.
    pub bad: usize,
    /// How many records there are in all.
    pub of: usize,
}

/// How many bad records an error lists.
pub const LISTED: usize = 20;

impl BadRecords {
    /// Makes the list of the errors met in `what`, of which the first [`LISTED`] are shown.
    pub fn new(what: impl Into<String>, mut errors: Vec<DataError>, of: usize) -> Self {
        let bad = errors.len();
        errors.truncate(LISTED);
        Self { what: what.into(), listed: errors, bad, of }
    }
}

impl fmt::Display for BadRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { what, listed, bad, of } = self;
        if let ([only], 1) = (&listed[..], bad) {
            return write!(f, "{only}");
        }
        write!(
            f,
            "{what}: {bad} of {of} records cannot be used; correct or remove them, or set data.on_error = \"skip\":"
        )?;
        for error in listed {
            write!(f, "\n  {error}")?;
        }
        match bad.saturating_sub(listed.len()) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more; `dualspeed data check` lists them all"),
        }
    }
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
    /// A chat template cannot be followed.
    #[error(
        "{name}: {problem}; choose another template with --template NAME or --template FILE.jinja, or `template` in the \
         configuration"
    )]
    Template {
        /// The file of the template, or what it is.
        name: String,
        /// What is wrong, as far as possible with the line.
        problem: String,
    },
    /// No template has this name.
    #[error(
        "no template is called {name:?}; there are plain, vicuna_v1, qa, llava_llama2, llama3, chatml, mistral_instruct, and \
         files that end in .jinja"
    )]
    UnknownTemplate {
        /// The name.
        name: String,
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

impl EncodeError {
    /// Name of the kind of mistake, as reports count them.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::ImageTruncated { .. } => "image beyond max_length",
            Self::NothingSupervised { .. } => "no supervised token",
            _ => "text cannot be encoded",
        }
    }
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
    /// What git-lfs leaves where a file was not fetched.
    #[error(
        "image {name} is a git-lfs pointer, not the image; run `git lfs pull` where it came from"
    )]
    LfsPointer {
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

impl ImageError {
    /// Name of the kind of mistake, as reports count them.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Read { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                "image is missing"
            }
            Self::Read { .. } | Self::NotAFile { .. } => "image cannot be read",
            Self::EmptyFile { .. } => "image is empty",
            Self::UnknownFormat { .. } => "image of unknown format",
            Self::TooLarge { .. } | Self::TooManyBytes { .. } => "image is too large",
            Self::ZeroSize { .. } => "image of zero size",
            Self::Truncated { .. } => "image is truncated",
            _ => "image cannot be decoded",
        }
    }
}
