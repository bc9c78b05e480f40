//! Conversations about images from a file: a JSON array of records, or one record a line (JSONL), as LLaVA, ShareGPT,
//! Hugging Face and OpenAI write them.
//!
//! ```json
//! {"id": "7", "image": "coco/7.jpg", "conversations": [
//!     {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}
//! {"images": ["coco/7.jpg"], "messages": [
//!     {"role": "user", "content": "<image>What is this?"}, {"role": "assistant", "content": "A cat."}]}
//! ```
//! docs/data.md has every form. A file is read once when it is opened: every record is checked, and that its images are
//! there, so that a mistake in the last one does not end a run after days. Only where records lie is kept; they are read
//! again when they are used.
//!
//! | module | concept |
//! |---|---|
//! | `scan` | where records lie in a file, found without parsing |
//! | `index` | all records of a file, checked in parallel |
//! | `record` | one record: roles, turns, system prompt, images |
//! | `content` | what a turn says: text, or parts |
//! | `image` | where an image's pixels are |
//! | `keys` | keys that are read, keys whose data would be lost, the others |
//! | `value` | JSON that borrows its text |
//! | `file` | reading at an offset |

mod content;
mod file;
mod image;
mod index;
mod keys;
mod record;
mod scan;
mod value;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dualspeed_core::hash::hex;
use sha2::{Digest, Sha256};

use crate::error::{BadRecords, DataError, RecordProblem};
use crate::example::Example;
use crate::on_error::OnError;
use crate::picture::{
    DecodedImages, HostImage, ImageProcessor, LoadedImage, TileConfig, decode_image, image_size,
    load_image, printable, read_image_file,
};
use crate::source::{ExampleSource, FileNotes, LengthBound, Modality, RecordKey};
use crate::text::{Conversation, Encoded, Template, TextTokenizer, encode_training};
use file::RecordFile;
use image::ImageSource;
use index::{Index, parse, record_error};
use record::Record;

/// How records become examples.
#[derive(Clone, Debug)]
pub struct LlavaJsonConfig {
    /// Paths of images are relative to this folder.
    pub image_root: PathBuf,
    /// How conversations are written out.
    pub template: Template,
    /// The system prompt of records without one of their own: `None` is the template's, `Some("")` is none at all.
    pub system: Option<String>,
    /// Longer examples are cut, in ids with an image as one.
    pub max_length: Option<usize>,
    /// How images become pixels.
    pub processor: ImageProcessor,
    /// Tiles of images of any resolution; without it an image is one tile.
    pub tiles: Option<TileConfig>,
    /// Whether records that cannot be used stay, as examples that cannot be made, or are an error when the file is opened.
    pub on_error: OnError,
}

/// A data set from a file of conversations.
#[derive(Clone)]
pub struct LlavaJson {
    path: PathBuf,
    file: Arc<RecordFile>,
    index: Arc<Index>,
    config: LlavaJsonConfig,
    tokenizer: Arc<TextTokenizer>,
    fingerprint: String,
    /// Ids at most that the template adds to the text of one turn, and of each turn more.
    overhead: Option<[usize; 2]>,
}

impl LlavaJson {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// If it cannot be read; what is wrong with its records, all of it, unless `on_error` is [`OnError::Skip`].
    pub fn open(
        path: impl AsRef<Path>,
        config: LlavaJsonConfig,
        tokenizer: Arc<TextTokenizer>,
    ) -> Result<Self, DataError> {
        config.processor.validate()?;
        let path = path.as_ref().to_path_buf();
        let mut index = Index::open(&path, &config.image_root, &config.processor.loading)?;
        index.notes.unusable = index.problems.len();
        // Where the file cannot be read to its end, who knows what is missing.
        let cut = index.problems.iter().any(|problem| problem.record.is_none());
        if cut || (config.on_error == OnError::Stop && !index.problems.is_empty()) {
            let own = |error| Arc::try_unwrap(error).unwrap_or_else(DataError::Shared);
            let mut errors: Vec<_> = index.problems.into_iter().map(|p| own(p.error)).collect();
            return Err(match errors.len() {
                1 => errors.swap_remove(0),
                _ => {
                    let what = path.display().to_string();
                    DataError::Several(BadRecords::new(what, errors, index.entries.len()))
                }
            });
        }
        let fingerprint = fingerprint(&index, &config);
        let file = RecordFile::open(&path)
            .map_err(|source| DataError::Read { path: path.clone(), source })?;
        let overhead = overhead(&config, &tokenizer);
        let (file, index) = (Arc::new(file), Arc::new(index));
        Ok(Self { path, file, index, config, tokenizer, fingerprint, overhead })
    }

    /// The conversation of a record; `None` if there is none that can be used.
    pub fn conversation(&self, index: usize) -> Option<Conversation> {
        self.read(index).ok().map(|record| record.conversation)
    }

    /// The image files of a record, under the image folder; images in the record itself are `None`.
    ///
    /// # Errors
    /// What is wrong with the record.
    pub fn image_files(&self, index: usize) -> Result<Vec<Option<PathBuf>>, DataError> {
        let record = self.read(index)?;
        Ok(record.images.iter().map(|image| image.path(&self.config.image_root)).collect())
    }

    /// Reads a record again.
    fn read(&self, index: usize) -> Result<Record, DataError> {
        let entries = &self.index.entries;
        let out_of_range = DataError::OutOfRange { index, len: entries.len() };
        let entry = entries.get(index).ok_or(out_of_range)?;
        if entry.is_bad {
            let found = self
                .index
                .problems
                .binary_search_by_key(&index, |problem| problem.record.unwrap_or(usize::MAX));
            if let Some(problem) = found.ok().and_then(|at| self.index.problems.get(at)) {
                return Err(DataError::Shared(problem.error.clone()));
            }
        }
        let fail = |(id, problem)| record_error(&self.path, entry.span, index, id, problem);
        let bytes = self.file.read(entry.span.offset, entry.span.length);
        let bytes = bytes.map_err(|source| DataError::Read { path: self.path.clone(), source })?;
        let mut record = parse(&bytes, entry.span).map_err(fail)?;
        if record.digest(true) != entry.digest {
            return Err(fail((record.id, RecordProblem::Changed)));
        }
        let conversation = &mut record.conversation;
        if conversation.system.is_none() {
            conversation.system.clone_from(&self.config.system);
        }
        Ok(record)
    }

    fn encode(&self, index: usize, record: &Record) -> Result<Encoded, DataError> {
        let LlavaJsonConfig { template, max_length, .. } = &self.config;
        encode_training(&record.conversation, template, &self.tokenizer, *max_length)
            .map_err(|error| self.problem(index, record, error))
    }

    fn problem(
        &self,
        index: usize,
        record: &Record,
        problem: impl Into<RecordProblem>,
    ) -> DataError {
        match self.index.entries.get(index) {
            Some(entry) => {
                record_error(&self.path, entry.span, index, record.id.clone(), problem.into())
            }
            None => DataError::OutOfRange { index, len: self.index.entries.len() },
        }
    }

    fn load(&self, number: usize, image: &ImageSource) -> Result<LoadedImage, RecordProblem> {
        let loading = &self.config.processor.loading;
        match image {
            ImageSource::File(name) => Ok(load_image(self.config.image_root.join(name), loading)?),
            ImageSource::Embedded(data) => {
                let name = format!("{number} of the record");
                Ok(decode_image(&image::decode(number, data)?, &name, loading)?)
            }
        }
    }

    /// Width and height of an image as it will be used, without decoding it.
    fn size(&self, number: usize, image: &ImageSource) -> Result<(u32, u32), RecordProblem> {
        let loading = &self.config.processor.loading;
        let bytes;
        let (name, bytes) = match image {
            ImageSource::File(name) => {
                let path = self.config.image_root.join(name);
                let name = printable(&path);
                bytes = read_image_file(&path, loading)?;
                (name, &bytes)
            }
            ImageSource::Embedded(data) => {
                bytes = image::decode(number, data)?;
                (format!("{number} of the record"), &bytes)
            }
        };
        Ok(image_size(bytes, &name, loading)?)
    }

    fn example(&self, record: Record, encoded: Encoded) -> Example {
        let Encoded { input_ids, labels, .. } = encoded;
        let prompt = record.conversation.prompt();
        let (images, tilings, questions) = (Vec::new(), Vec::new(), Vec::new());
        let id = String::new();
        Example { id, input_ids, labels, images, tilings, questions, prompt }
    }
}

/// Finds what the template adds to one turn, and to each turn more, with a system prompt or without; `None` if it cannot
/// be told.
fn overhead(config: &LlavaJsonConfig, tokenizer: &TextTokenizer) -> Option<[usize; 2]> {
    /// Words may be cut otherwise where they meet the template's than alone.
    const SEAMS: usize = 8;
    let length = |turns: usize| {
        let lengths =
            [config.system.clone(), Some("a".to_owned())].into_iter().filter_map(|system| {
                let turns = vec![("a", "a"); turns];
                let conversation = Conversation { system, ..Conversation::new(turns) };
                let encoded = encode_training(&conversation, &config.template, tokenizer, None);
                encoded.ok().map(|encoded| encoded.input_ids.len())
            });
        lengths.max()
    };
    let (one, two) = (length(1)?, length(2)?);
    Some([one + SEAMS, two.saturating_sub(one) + SEAMS])
}

/// Names the content of all records, and what is made of them.
fn fingerprint(index: &Index, config: &LlavaJsonConfig) -> String {
    let mut hash = Sha256::new();
    for entry in &index.entries {
        hash.update(entry.digest.to_le_bytes());
    }
    let LlavaJsonConfig { template, system, max_length, processor, tiles, .. } = config;
    hash.update(format!("{template:?} {system:?} {max_length:?} {processor:?}"));
    if let Some(tiles) = tiles {
        hash.update(format!("{tiles:?}"));
    }
    format!("llava-{}", hex(&hash.finalize()[..8]))
}

impl ExampleSource for LlavaJson {
    fn len(&self) -> usize {
        self.index.entries.len()
    }

    fn get(&self, index: usize) -> Result<Example, DataError> {
        let record = self.read(index)?;
        let encoded = self.encode(index, &record)?;
        let (mut images, mut tilings) = (Vec::new(), Vec::new());
        let processor = &self.config.processor;
        for (number, image) in record.images.iter().enumerate() {
            let fail = |error: RecordProblem| self.problem(index, &record, error);
            let pixels = self.load(number, image).map_err(fail)?.pixels;
            match &self.config.tiles {
                None => images.push(Arc::new(processor.process(&pixels))),
                Some(tiles) => {
                    let tiled = processor.process_tiles(&pixels, tiles);
                    let tiled = tiled.map_err(|error| fail(error.into()))?;
                    images.extend(tiled.tiles);
                    tilings.push(tiled.tiling);
                }
            }
        }
        let id = self.id(index);
        Ok(Example { id, images, tilings, ..self.example(record, encoded) })
    }

    fn id(&self, index: usize) -> String {
        self.index.id(index)
    }

    fn outline(&self, index: usize) -> Result<Example, DataError> {
        let record = self.read(index)?;
        let encoded = self.encode(index, &record)?;
        let (mut images, mut tilings) = (Vec::new(), Vec::new());
        let side = self.config.processor.size;
        let blank = Arc::new(HostImage { key: 0, size: side, pixels: Vec::new() });
        for (number, image) in record.images.iter().enumerate() {
            let Some(tiles) = &self.config.tiles else {
                images.push(blank.clone());
                continue;
            };
            let fail = |error: RecordProblem| self.problem(index, &record, error);
            let (width, height) = self.size(number, image).map_err(fail)?;
            let tiling = tiles.tiling([height as usize, width as usize], side);
            let tiling = tiling.map_err(|error| fail(error.into()))?;
            images.extend(std::iter::repeat_n(blank.clone(), tiling.tiles()));
            tilings.push(tiling);
        }
        let id = self.id(index);
        Ok(Example { id, images, tilings, ..self.example(record, encoded) })
    }

    fn check_images(&self, index: usize, seen: &DecodedImages) -> Vec<DataError> {
        let record = match self.read(index) {
            Ok(record) => record,
            Err(error) => return vec![error],
        };
        let loading = &self.config.processor.loading;
        let faults = record.images.iter().enumerate().filter_map(|(number, image)| {
            let problem = match image.path(&self.config.image_root) {
                Some(path) => seen.file(&path, loading).err().map(RecordProblem::SharedImage),
                None => self.load(number, image).err(),
            };
            problem.map(|problem| self.problem(index, &record, problem))
        });
        faults.collect()
    }

    fn digest(&self, index: usize) -> Option<u64> {
        self.read(index).ok().map(|record| record.digest(false))
    }

    fn notes(&self) -> Option<&FileNotes> {
        Some(&self.index.notes)
    }

    fn locate(&self, index: usize, problem: RecordProblem) -> DataError {
        match self.read(index) {
            Ok(record) => self.problem(index, &record, problem),
            Err(error) => error,
        }
    }

    fn modality(&self, index: usize) -> Modality {
        match self.index.entries.get(index) {
            Some(entry) if entry.images > 0 => Modality::Image,
            _ => Modality::Text,
        }
    }

    /// Words of all turns.
    fn length_hint(&self, index: usize) -> usize {
        self.index.entries.get(index).map_or(0, |entry| entry.words as usize)
    }

    /// From the number of bytes: no tokenizer here makes more tokens of a text than it has bytes.
    fn length_bound(&self, index: usize) -> Option<LengthBound> {
        let entry = self.index.entries.get(index).filter(|entry| !entry.is_bad)?;
        let [first, each] = self.overhead?;
        let (turns, images) = (usize::from(entry.turns), usize::from(entry.images));
        if entry.turns == u16::MAX || entry.images == u16::MAX {
            return None;
        }
        // A template may set images off with line breaks.
        let ids = entry.bytes as usize + first + each * turns.saturating_sub(1) + 3 * images;
        Some(LengthBound { ids, images })
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    fn record(&self, index: usize) -> Option<RecordKey> {
        let entry = self.index.entries.get(index)?;
        Some(RecordKey { id: self.index.id(index), digest: entry.digest })
    }

    fn tokenizer(&self) -> Option<Arc<TextTokenizer>> {
        Some(self.tokenizer.clone())
    }

    fn template(&self) -> Template {
        self.config.template.clone()
    }
}
