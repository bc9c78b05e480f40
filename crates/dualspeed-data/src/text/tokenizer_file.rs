//! Tokenizers from the files of a model: `tokenizer.json`, with `tokenizer_config.json` beside it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

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
        let special = special_tokens(dir)?;
        Self::from_file(dir.join(TOKENIZER), &special)
    }
}

/// The special tokens that `tokenizer_config.json` names, else those of `special_tokens_map.json`.
fn special_tokens(dir: &Path) -> Result<SpecialTokens, EncodeError> {
    let mut names = BTreeMap::new();
    for file in ["special_tokens_map.json", "tokenizer_config.json"] {
        let json = read_json(&dir.join(file))?;
        let extra = json.get("extra_special_tokens");
        for (name, token) in
            [Some(&json), extra].into_iter().flatten().filter_map(Value::as_object).flatten()
        {
            // A token is text, or an object with the text in it.
            let text = token.as_str().or_else(|| token.get("content")?.as_str());
            if let Some(text) = text.filter(|_| name.ends_with("_token")) {
                names.insert(name.clone(), text.to_owned());
            }
        }
    }
    Ok(SpecialTokens {
        bos: names.get("bos_token").cloned(),
        eos: names.get("eos_token").cloned(),
        pad: names.get("pad_token").cloned(),
        others: names,
    })
}

/// The JSON of a file; null where there is no such file.
pub(super) fn read_json(path: &Path) -> Result<Value, EncodeError> {
    let wrong = |reason: String| vocabulary(&path.display().to_string(), reason);
    match std::fs::read(path) {
        Ok(text) => serde_json::from_slice(&text).map_err(|error| wrong(error.to_string())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Value::Null),
        Err(error) => Err(wrong(error.to_string())),
    }
}
