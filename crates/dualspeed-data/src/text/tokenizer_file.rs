//! Tokenizers from the files of a model: `tokenizer.json`, with `tokenizer_config.json` beside it.

use std::io::ErrorKind;
use std::path::Path;

use dualspeed_core::git_lfs;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::tokenizer::{SpecialTokens, TextTokenizer, vocabulary};
use crate::error::EncodeError;

/// The name under which a model's directory has its tokenizer.
const TOKENIZER: &str = "tokenizer.json";

/// Reads a Hugging Face `tokenizer.json`. If the file has that name and `tokenizer_config.json` lies beside it, special
/// tokens are those that it names; else usual ones are looked for in the vocabulary.
///
/// # Errors
/// [`EncodeError::Vocabulary`] if a file cannot be read or parsed, a named token is not in the vocabulary, or there is no
/// end token.
pub fn read_tokenizer(path: &Path) -> Result<TextTokenizer, EncodeError> {
    let dir = path.parent().filter(|_| path.file_name().is_some_and(|name| name == TOKENIZER));
    match dir {
        Some(dir) => TextTokenizer::from_dir(dir),
        None => TextTokenizer::from_file(path, &SpecialTokens::default()),
    }
}

impl TextTokenizer {
    /// Reads a Hugging Face `tokenizer.json`, whatever its name; special tokens are those given.
    ///
    /// # Errors
    /// [`EncodeError::Vocabulary`] if the file cannot be read or parsed, a named special token is not in the vocabulary,
    /// or there is no end token.
    pub fn from_file(path: impl AsRef<Path>, special: &SpecialTokens) -> Result<Self, EncodeError> {
        let path = path.as_ref();
        let wrong = |reason: String| vocabulary(&path.display().to_string(), reason);
        let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        if git_lfs::is_pointer(&bytes) {
            return Err(wrong(git_lfs::ADVICE.to_owned()));
        }
        let inner = Tokenizer::from_bytes(bytes)
            .map_err(|error| wrong(format!("{error}; expected a Hugging Face tokenizer.json")))?;
        Self::new(inner, special)
    }

    /// Reads `tokenizer.json` of a model's directory, with the special tokens that `tokenizer_config.json` names there.
    ///
    /// # Errors
    /// [`EncodeError::Vocabulary`] if a file cannot be read or parsed (`tokenizer_config.json` may be absent), a named
    /// token is not in the vocabulary, or there is no end token.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, EncodeError> {
        let dir = dir.as_ref();
        let path = dir.join("tokenizer_config.json");
        let wrong = |reason: String| vocabulary(&path.display().to_string(), reason);
        let config: Value = match std::fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?,
            Err(error) if error.kind() == ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(wrong(error.to_string())),
        };
        // A token is text, or an object with the text in it.
        let token = |name: &str| {
            let value = config.get(name)?;
            let text = value.as_str().or_else(|| value.get("content")?.as_str())?;
            Some(text.to_owned())
        };
        let special = SpecialTokens {
            bos: token("bos_token"),
            eos: token("eos_token"),
            pad: token("pad_token"),
        };
        Self::from_file(dir.join(TOKENIZER), &special)
    }
}
