//! Tokenizers from the files of a model: `tokenizer.json` or sentencepiece's `tokenizer.model`, with `tokenizer_config.json`
//! beside it.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

use dualspeed_core::git_lfs;
use serde_json::Value;
use tokenizers::Tokenizer;

use super::sentencepiece::{AddedPiece, SpacePrefix};
use super::sentencepiece_file;
use super::tokenizer::{SpecialTokens, TextTokenizer, vocabulary};
use crate::error::EncodeError;

/// The names under which a model's directory has its tokenizer, the first that is there.
const TOKENIZER: [&str; 2] = ["tokenizer.json", "tokenizer.model"];

/// Reads a Hugging Face `tokenizer.json`, or sentencepiece's `tokenizer.model`. If the file has that name, special tokens are
/// those that `tokenizer_config.json` beside it names; else usual ones are looked for in the vocabulary.
///
/// # Errors
/// [`EncodeError::Vocabulary`] if a file cannot be read or parsed, a named token is not in the vocabulary, or there is no
/// end token.
pub fn read_tokenizer(path: &Path) -> Result<TextTokenizer, EncodeError> {
    let named = TOKENIZER.iter().find(|name| path.file_name().is_some_and(|own| own == **name));
    match (path.parent(), named) {
        (Some(dir), Some(name)) => read_named(dir, name),
        _ => TextTokenizer::from_file(path, &SpecialTokens::default()),
    }
}

impl TextTokenizer {
    /// Reads a Hugging Face `tokenizer.json`, or a model of sentencepiece if the name ends in `.model`; special tokens are those
    /// given.
    ///
    /// # Errors
    /// [`EncodeError::Vocabulary`] if the file cannot be read or parsed, a named special token is not in the vocabulary,
    /// or there is no end token.
    pub fn from_file(path: impl AsRef<Path>, special: &SpecialTokens) -> Result<Self, EncodeError> {
        let path = path.as_ref();
        if path.extension().is_some_and(|end| end == "model") {
            return Self::new(sentencepiece(path, &Value::Null, &Value::Null)?, special);
        }
        let wrong = |reason: String| vocabulary(&path.display().to_string(), reason);
        let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
        if git_lfs::is_pointer(&bytes) {
            return Err(wrong(git_lfs::ADVICE.to_owned()));
        }
        let inner = Tokenizer::from_bytes(bytes)
            .map_err(|error| wrong(format!("{error}; expected a Hugging Face tokenizer.json")))?;
        Self::new(inner, special)
    }

    /// Reads the tokenizer of a model's directory, `tokenizer.json` or else `tokenizer.model`, with the special tokens that
    /// `tokenizer_config.json` and `special_tokens_map.json` name there.
    ///
    /// # Errors
    /// [`EncodeError::Vocabulary`] if a file cannot be read or parsed (all but the first may be absent), a named token is not in
    /// the vocabulary, or there is no end token.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, EncodeError> {
        let dir = dir.as_ref();
        let found = TOKENIZER.iter().find(|name| dir.join(name).is_file());
        read_named(dir, found.unwrap_or(&TOKENIZER[0]))
    }
}

fn read_named(dir: &Path, name: &str) -> Result<TextTokenizer, EncodeError> {
    let special = special_tokens(dir)?;
    let path = dir.join(name);
    if name == TOKENIZER[0] {
        return TextTokenizer::from_file(path, &special);
    }
    let config = read_json(&dir.join("tokenizer_config.json"))?;
    let added = read_json(&dir.join("added_tokens.json"))?;
    TextTokenizer::new(sentencepiece(&path, &config, &added)?, &special)
}

/// Reads `tokenizer.model` as transformers' LlamaTokenizer does with `tokenizer_config.json` (and, before it had them,
/// `added_tokens.json`) beside it.
fn sentencepiece(path: &Path, config: &Value, added: &Value) -> Result<Tokenizer, EncodeError> {
    let what = path.display().to_string();
    let wrong = |reason: String| vocabulary(&what, reason);
    let bytes = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let mut pieces = sentencepiece_file::parse(&bytes).map_err(wrong)?;
    let flag = |name: &str, default| config.get(name).and_then(Value::as_bool).unwrap_or(default);
    if !flag("add_prefix_space", true) {
        pieces.space = SpacePrefix::Never;
    }
    if pieces.space == SpacePrefix::EveryPiece && !flag("legacy", true) {
        pieces.space = SpacePrefix::FirstPiece;
    }
    let id = |id: Option<u32>, wanted| id.filter(|_| wanted);
    pieces.around =
        [id(pieces.bos, flag("add_bos_token", true)), id(pieces.eos, flag("add_eos_token", false))];
    pieces.added = added_pieces(config, added).map_err(wrong)?;
    pieces.inner().map_err(|error| match error {
        EncodeError::Vocabulary { reason, .. } => wrong(reason),
        other => other,
    })
}

/// The tokens of `added_tokens_decoder`, by id; of `added_tokens.json` where there are none.
fn added_pieces(config: &Value, older: &Value) -> Result<Vec<AddedPiece>, String> {
    let flag =
        |token: &Value, name: &str| token.get(name).and_then(Value::as_bool).unwrap_or(false);
    let mut pieces = Vec::new();
    for (id, token) in
        config.get("added_tokens_decoder").and_then(Value::as_object).into_iter().flatten()
    {
        let number = id.parse().map_err(|_| format!("added_tokens_decoder: {id:?} is no id"))?;
        let content = token.get("content").and_then(Value::as_str);
        pieces.push(AddedPiece {
            id: number,
            content: content.ok_or(format!("added_tokens_decoder: {id}: no content"))?.to_owned(),
            special: flag(token, "special"),
            lstrip: flag(token, "lstrip"),
            rstrip: flag(token, "rstrip"),
            normalized: flag(token, "normalized"),
        });
    }
    let known: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
    for (content, id) in older.as_object().into_iter().flatten() {
        let number = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let number = number.ok_or(format!("added_tokens.json: {content:?}: {id} is no id"))?;
        if !known.contains(&number) {
            // Older files do not say what their tokens are; all that LLaVA's code adds are special.
            let content = content.clone();
            let (lstrip, rstrip, normalized) = (false, false, false);
            pieces.push(AddedPiece {
                id: number,
                content,
                special: true,
                lstrip,
                rstrip,
                normalized,
            });
        }
    }
    pieces.sort_by_key(|piece| piece.id);
    Ok(pieces)
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
