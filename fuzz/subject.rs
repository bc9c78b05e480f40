//! What is fuzzed: everything that reads foreign files, by name. Shared by the driver in `fuzz.rs` and by the targets of
//! cargo-fuzz, which name the crates `data` and `model` for it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::data::{
    BpeVocabulary, ExampleSource, FitMode, ImageProcessor, LlavaJson, LlavaJsonConfig, OnError,
    SentencePieceVocabulary, Template, TextTokenizer,
};
use super::model::import::gguf::{Gguf, GgufVocabulary};
use super::model::import::pickle::PickleWeights;
use super::model::import::safetensors::{SafetensorsWeights, parse_index};
use super::model::import::source::WeightSource;

/// Parses an input; the outcome as text.
pub struct Subject {
    target: String,
    file: PathBuf,
    tokenizer: Arc<TextTokenizer>,
}

impl Subject {
    /// The target of this name; inputs are written into `scratch`.
    pub fn new(target: &str, scratch: &Path) -> Result<Self, Box<dyn std::error::Error>> {
        std::fs::create_dir_all(scratch)?;
        let words = TextTokenizer::from_words(["user", "assistant", "what", "cat"])?;
        let file = scratch.join("input");
        Ok(Self { target: target.to_owned(), file, tokenizer: Arc::new(words) })
    }

    /// Parses an input and reads all that is in it; the outcome as text.
    pub fn run(&self, input: &[u8]) -> String {
        if self.target == "index" {
            return match parse_index(input) {
                Ok(shards) => format!("{} shards", shards.len().min(3)),
                Err(error) => error,
            };
        }
        if let Err(error) = std::fs::write(&self.file, input) {
            panic!("{}: {error}", self.file.display());
        }
        match self.target.as_str() {
            "gguf" => match Gguf::open(&self.file) {
                Ok(gguf) => {
                    let vocabulary = gguf.vocabulary().map(tokenizer);
                    match gguf.into_checkpoint() {
                        Ok(checkpoint) => {
                            format!("{vocabulary:?} {}", read_all(checkpoint.weights()))
                        }
                        Err(error) => error.to_string(),
                    }
                }
                Err(error) => error.to_string(),
            },
            "pickle" => {
                PickleWeights::open(&self.file).map_or_else(|e| e.to_string(), |w| read_all(&w))
            }
            "safetensors" => SafetensorsWeights::open(&self.file)
                .map_or_else(|e| e.to_string(), |w| read_all(&w)),
            _ => {
                let config = LlavaJsonConfig {
                    image_root: self.file.with_file_name("images"),
                    template: Template::VicunaV1,
                    system: None,
                    max_length: Some(64),
                    processor: ImageProcessor::clip(28, FitMode::Pad),
                    tiles: None,
                    on_error: OnError::Skip,
                };
                match LlavaJson::open(&self.file, config, self.tokenizer.clone()) {
                    Ok(data) => {
                        let problem = (0..data.len()).find_map(|index| data.get(index).err());
                        problem.map_or_else(|| "fine".to_owned(), |error| error.to_string())
                    }
                    Err(error) => error.to_string(),
                }
            }
        }
    }
}

/// Reads every tensor; the outcomes, each once.
fn read_all(weights: &dyn WeightSource) -> String {
    let mut outcomes = BTreeSet::new();
    for (key, info) in weights.tensors() {
        // Sizes are checked against the file before anything is allocated; this guards the machine if they are not.
        let outcome = match weights.read(key) {
            Ok(tensor) => format!("read {} {}", info.dtype, tensor.shape.len()),
            Err(error) => error.to_string().split("tensor `").next().unwrap_or_default().to_owned(),
        };
        outcomes.insert(outcome);
    }
    outcomes.into_iter().collect::<Vec<_>>().join(" | ")
}

/// The tokenizer of a vocabulary: whether it can be made.
fn tokenizer(vocabulary: GgufVocabulary) -> bool {
    let GgufVocabulary { pre, tokens, special, user_defined, merges, scores, .. } = vocabulary;
    let (bos, eos, unknown) = (vocabulary.bos, vocabulary.eos, vocabulary.unknown);
    let made = match vocabulary.model.as_str() {
        "llama" => SentencePieceVocabulary {
            tokens,
            scores,
            control: special,
            user_defined,
            unknown,
            bos,
            eos,
            ..SentencePieceVocabulary::default()
        }
        .tokenizer(),
        _ => BpeVocabulary { tokens, merges, pre, special, bos, eos }.tokenizer(),
    };
    made.is_ok()
}
