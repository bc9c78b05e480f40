//! The LLaVA data format from disk: a JSON array of records, or one record a line (JSONL).
//!
//! ```json
//! {"id": "7", "image": "coco/7.jpg", "conversations": [
//!     {"from": "human", "value": "<image>\nWhat is this?"}, {"from": "gpt", "value": "A cat."}]}
//! ```
//! `image` is a path under the image folder, a list of them, or absent. Every record is checked when the file is
//! opened, and that its images are there, so that a mistake in the last one does not end a run after days;
//! [`ExampleSource::verify`] also decodes the images and encodes the text.

mod read;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dualspeed_core::hash::hex;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::error::{DataError, EncodeError, RecordProblem};
use crate::example::Example;
use crate::picture::{ImageProcessor, TileConfig, check_image_file, load_image, preprocess_image};
use crate::source::{ExampleSource, Modality};
use crate::text::{Conversation, Encoded, Template, TextTokenizer, encode_training};

/// How records become examples.
#[derive(Clone, Debug)]
pub struct LlavaJsonConfig {
    /// `image` paths are relative to this folder.
    pub image_root: PathBuf,
    /// How conversations are written out.
    pub template: Template,
    /// The system prompt: `None` is the template's own, `Some("")` is none at all.
    pub system: Option<String>,
    /// Longer examples are cut, in ids with an image as one.
    pub max_length: Option<usize>,
    /// How images become pixels.
    pub processor: ImageProcessor,
    /// Tiles of images of any resolution; without it an image is one tile.
    pub tiles: Option<TileConfig>,
}

/// A data set in LLaVA's format.
#[derive(Clone)]
pub struct LlavaJson {
    path: PathBuf,
    records: Vec<Record>,
    config: LlavaJsonConfig,
    tokenizer: Arc<TextTokenizer>,
    fingerprint: String,
}

#[derive(Clone, Debug)]
struct Record {
    line: usize,
    id: String,
    images: Vec<String>,
    conversation: Conversation,
}

impl LlavaJson {
    /// Reads and checks a `.json` or `.jsonl` file.
    ///
    /// # Errors
    /// The first thing that is wrong, with file, line, record and id.
    pub fn open(
        path: impl AsRef<Path>,
        config: LlavaJsonConfig,
        tokenizer: Arc<TextTokenizer>,
    ) -> Result<Self, DataError> {
        config.processor.validate()?;
        let path = path.as_ref().to_path_buf();
        let bytes = std::fs::read(&path)
            .map_err(|source| DataError::Read { path: path.clone(), source })?;
        let mut records = read::records(&path, &bytes)?;
        for record in &mut records {
            record.conversation.system.clone_from(&config.system);
        }
        let mut hash = Sha256::new();
        hash.update(&bytes);
        let LlavaJsonConfig { template, system, max_length, processor, tiles, .. } = &config;
        hash.update(format!("{template:?} {system:?} {max_length:?} {processor:?}"));
        if let Some(tiles) = tiles {
            hash.update(format!("{tiles:?}"));
        }
        let fingerprint = format!("llava-{}", hex(&hash.finalize()[..8]));
        let source = Self { path, records, config, tokenizer, fingerprint };
        source.find_images()?;
        Ok(source)
    }

    /// Looks at every image file without opening it; the first record with a missing one is the error.
    fn find_images(&self) -> Result<(), DataError> {
        let missing = |index: usize| {
            self.records[index].images.iter().find_map(|name| {
                let path = self.config.image_root.join(name);
                check_image_file(&path, &self.config.processor.loading)
                    .err()
                    .map(|error| self.problem(index, error))
            })
        };
        (0..self.records.len()).into_par_iter().find_map_first(missing).map_or(Ok(()), Err)
    }

    /// The conversation of a record.
    pub fn conversation(&self, index: usize) -> Option<&Conversation> {
        self.records.get(index).map(|record| &record.conversation)
    }

    fn encode(&self, record: &Record) -> Result<Encoded, EncodeError> {
        let LlavaJsonConfig { template, max_length, .. } = self.config;
        encode_training(&record.conversation, template, &self.tokenizer, max_length)
    }

    fn problem(&self, index: usize, problem: impl Into<RecordProblem>) -> DataError {
        let Record { line, id, .. } = &self.records[index];
        DataError::Record {
            path: self.path.clone(),
            line: *line,
            record: index,
            id: id.clone(),
            problem: Box::new(problem.into()),
        }
    }
}

impl ExampleSource for LlavaJson {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn get(&self, index: usize) -> Result<Example, DataError> {
        let out_of_range = DataError::OutOfRange { index, len: self.records.len() };
        let record = self.records.get(index).ok_or(out_of_range)?;
        let encoded = self.encode(record).map_err(|e| self.problem(index, e))?;
        let (mut images, mut tilings) = (Vec::new(), Vec::new());
        for name in &record.images {
            let path = self.config.image_root.join(name);
            let processor = &self.config.processor;
            match &self.config.tiles {
                None => {
                    let image = preprocess_image(path, processor);
                    images.push(Arc::new(image.map_err(|e| self.problem(index, e))?));
                }
                Some(tiles) => {
                    let tiled = load_image(path, &processor.loading)
                        .and_then(|image| processor.process_tiles(&image.pixels, tiles))
                        .map_err(|e| self.problem(index, e))?;
                    images.extend(tiled.tiles);
                    tilings.push(tiled.tiling);
                }
            }
        }
        let Encoded { input_ids, labels, .. } = encoded;
        let (id, prompt) = (record.id.clone(), record.conversation.prompt());
        Ok(Example { id, input_ids, labels, images, tilings, questions: Vec::new(), prompt })
    }

    fn modality(&self, index: usize) -> Modality {
        match self.records.get(index) {
            Some(record) if !record.images.is_empty() => Modality::Image,
            _ => Modality::Text,
        }
    }

    /// Words of all turns.
    fn length_hint(&self, index: usize) -> usize {
        let words = |text: &str| text.split_whitespace().count();
        self.records.get(index).map_or(0, |record| {
            let turns = record.conversation.turns.iter();
            turns.map(|turn| words(&turn.user) + turn.assistant.as_deref().map_or(0, words)).sum()
        })
    }

    fn fingerprint(&self) -> String {
        self.fingerprint.clone()
    }

    /// Decodes every image and encodes every conversation, in parallel.
    fn verify(&self) -> Vec<DataError> {
        (0..self.records.len()).into_par_iter().filter_map(|index| self.get(index).err()).collect()
    }
}
