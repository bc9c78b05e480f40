//! What stands for an image in the prompts of an exported model.

use serde_json::Value;
use tokenizers::{AddedToken, Tokenizer};

use super::tokenizer::TextTokenizer;

/// The token that stands for visual tokens in transformers' prompts, and the tokenizer that has it.
#[derive(Clone, Debug)]
pub struct ImageToken {
    /// Its id, within the model's vocabulary.
    pub id: i64,
    /// Its text.
    pub text: String,
    /// The id that fills rows, another one.
    pub pad: i64,
    /// The tokenizer, with the token in it.
    pub tokenizer: Tokenizer,
}

impl ImageToken {
    /// Finds one for a model of `rows` embeddings: the tokenizer's own; else the one of id `known`; else a new one, where the embeddings have a row to
    /// spare; else the unknown token, where text is spelled in bytes and never needs it; else the last special token behind those that begin, end and
    /// fill rows, as vocabularies have their reserved ones at the end; else the one that fills rows.
    pub fn find(tokenizer: &TextTokenizer, known: Option<i64>, rows: usize) -> Self {
        let mut inner = tokenizer.inner().clone();
        let text = tokenizer.image_token().to_owned();
        let pad = tokenizer.pad_id();
        if let Some(id) = tokenizer.image_id() {
            return Self { id, text, pad, tokenizer: inner };
        }
        if let Some((id, text)) = known.and_then(|id| Some((id, tokenizer.token(id)?))) {
            return Self { id, text, pad, tokenizer: inner };
        }
        let size = tokenizer.vocab_size();
        if size < rows && inner.get_vocab_size(true) == size {
            inner.add_special_tokens(&[AddedToken::from(text.as_str(), true).normalized(false)]);
            return Self { id: size as i64, text, pad, tokenizer: inner };
        }
        let unknown =
            unknown_token(&inner).and_then(|text| Some((tokenizer.token_to_id(&text)?, text)));
        match unknown {
            Some((id, text)) => {
                let pad = if pad == id { tokenizer.eos_id() } else { pad };
                Self { id, text, pad, tokenizer: inner }
            }
            None => {
                // A token that a template writes for its own purposes would count as an image there.
                let (id, text) = spare_token(tokenizer)
                    .unwrap_or_else(|| (pad, tokenizer.token(pad).unwrap_or(text)));
                Self { id, text, pad, tokenizer: inner }
            }
        }
    }
}

/// The last special token behind those that begin, end and fill rows.
fn spare_token(tokenizer: &TextTokenizer) -> Option<(i64, String)> {
    let used = [tokenizer.bos_id().unwrap_or(0), tokenizer.eos_id(), tokenizer.pad_id()];
    let special = tokenizer.inner().get_added_tokens_decoder();
    let spare = special.into_iter().map(|(id, token)| (i64::from(id), token));
    let spare = spare.filter(|(id, token)| token.special && used.iter().all(|used| used < id));
    spare.max_by_key(|(id, _)| *id).map(|(id, token)| (id, token.content))
}

/// The unknown token of a tokenizer that spells in bytes what its pieces do not.
fn unknown_token(tokenizer: &Tokenizer) -> Option<String> {
    let model = serde_json::to_value(tokenizer.get_model()).ok()?;
    let bytes = model.get("byte_fallback").and_then(Value::as_bool).unwrap_or(false);
    model.get("unk_token").filter(|_| bytes)?.as_str().map(str::to_owned)
}
