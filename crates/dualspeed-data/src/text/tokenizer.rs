//! A tokenizer with the few special ids the templates need.

use serde_json::json;
use tokenizers::Tokenizer;

use super::conversation::plain_text;
use crate::error::EncodeError;

const BOS: &[&str] = &["<s>", "<|begin_of_text|>", "<bos>", "<|im_start|>", "<|startoftext|>"];
const EOS: &[&str] =
    &["</s>", "<|eot_id|>", "<|end_of_text|>", "<eos>", "<|im_end|>", "<|endoftext|>"];
const PAD: &[&str] = &["<pad>", "[PAD]", "<|pad|>", "<unk>"];
const UNK: &str = "<unk>";

/// Names of special tokens; `None` means: look for a usual one in the vocabulary.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a sequence. None found is fine.
    pub bos: Option<String>,
    /// Ends an answer. None found is an error.
    pub eos: Option<String>,
    /// Fills rows. None found: the end token is used.
    pub pad: Option<String>,
}

/// A `tokenizers` tokenizer that never turns text into special tokens: text that spells `</s>` stays text.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
    bos: Option<i64>,
    eos: i64,
    pad: i64,
    vocab_size: usize,
    /// Whether the tokenizer itself puts a space before any text, as sentencepiece does.
    adds_space: bool,
}

impl TextTokenizer {
    /// Wraps a tokenizer of the `tokenizers` crate.
    ///
    /// # Errors
    /// If a named special token is not in the vocabulary, or no end token is found.
    pub fn new(mut inner: Tokenizer, special: &SpecialTokens) -> Result<Self, EncodeError> {
        inner.set_encode_special_tokens(true);
        let bos = find(&inner, special.bos.as_deref(), BOS, "begin")?;
        let eos = find(&inner, special.eos.as_deref(), EOS, "end")?.ok_or_else(|| {
            vocabulary(
                "tokenizer",
                format!("none of the end tokens {EOS:?} is in the vocabulary; name the one to use"),
            )
        })?;
        let pad = find(&inner, special.pad.as_deref(), PAD, "padding")?.unwrap_or(eos);
        let vocab_size = inner.get_vocab(true).values().max().map_or(0, |&id| id as usize + 1);
        let probe = inner.encode("a", false).map_err(|e| vocabulary("tokenizer", e.to_string()))?;
        let adds_space =
            probe.get_tokens().first().is_some_and(|token| token.starts_with(['\u{2581}', 'Ġ']));
        Ok(Self { inner, bos, eos, pad, vocab_size, adds_space })
    }

    /// Makes a lower-casing tokenizer of whole words, hyphenated ones included, and runs of punctuation marks. Ids are
    /// `<pad>` 0, `<unk>` 1, `<s>` 2, `</s>` 3, then `words` in order, repetitions skipped.
    ///
    /// # Errors
    /// If `tokenizers` refuses the vocabulary.
    pub fn from_words<'a>(words: impl IntoIterator<Item = &'a str>) -> Result<Self, EncodeError> {
        let specials = [PAD[0], UNK, BOS[0], EOS[0]];
        let mut vocab = serde_json::Map::new();
        for word in specials.into_iter().chain(words) {
            let next = vocab.len();
            vocab.entry(word).or_insert_with(|| json!(next));
        }
        let added: Vec<_> = specials
            .iter()
            .enumerate()
            .map(|(id, content)| {
                json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
                        "rstrip": false, "normalized": false, "special": true })
            })
            .collect();
        let description = json!({
            "version": "1.0",
            "truncation": null, "padding": null,
            "added_tokens": added,
            "normalizer": { "type": "Lowercase" },
            "pre_tokenizer": {
                "type": "Split", "pattern": { "Regex": r"\w+(?:-\w+)*|[^\w\s]+" },
                "behavior": "Removed", "invert": true,
            },
            "post_processor": null, "decoder": null,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": UNK },
        });
        let inner = Tokenizer::from_bytes(description.to_string())
            .map_err(|e| vocabulary("word vocabulary", e.to_string()))?;
        Self::new(inner, &SpecialTokens::default())
    }

    /// Encodes text without special tokens, as it stands at the start of a sequence, or after an image or `</s>`.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>, EncodeError> {
        let text = &*plain_text(text);
        let encoding = self.inner.encode_fast(text, false).map_err(|e| EncodeError::Tokenizer {
            text: text.chars().take(60).collect(),
            reason: e.to_string(),
        })?;
        Ok(encoding.get_ids().iter().map(|&id| i64::from(id)).collect())
    }

    /// Encodes text that stands after other text and a space: what the tokenizer would make of the two written
    /// together. Sentencepiece-like tokenizers put that space themselves, byte-level ones need it in the text.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn encode_word(&self, text: &str) -> Result<Vec<i64>, EncodeError> {
        if self.adds_space { self.encode(text) } else { self.encode(&format!(" {text}")) }
    }

    /// Decodes ids to text. Special tokens and negative ids (images, ignored labels) are skipped.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn decode(&self, ids: &[i64]) -> Result<String, EncodeError> {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.inner
            .decode(&ids, true)
            .map_err(|e| EncodeError::Tokenizer { text: format!("{ids:?}"), reason: e.to_string() })
    }

    /// Id of the token that begins a sequence, if there is one.
    pub fn bos_id(&self) -> Option<i64> {
        self.bos
    }

    /// Id of the token that ends an answer.
    pub fn eos_id(&self) -> i64 {
        self.eos
    }

    /// Id that fills rows.
    pub fn pad_id(&self) -> i64 {
        self.pad
    }

    /// Largest id + 1: the number of rows an embedding table needs.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Id of a token of the vocabulary.
    pub fn token_to_id(&self, token: &str) -> Option<i64> {
        self.inner.token_to_id(token).map(i64::from)
    }

    /// The wrapped tokenizer.
    pub fn inner(&self) -> &Tokenizer {
        &self.inner
    }
}

fn find(
    inner: &Tokenizer,
    named: Option<&str>,
    usual: &[&str],
    role: &str,
) -> Result<Option<i64>, EncodeError> {
    match named {
        Some(token) => match inner.token_to_id(token) {
            Some(id) => Ok(Some(i64::from(id))),
            None => Err(vocabulary(
                "tokenizer",
                format!("the {role} token {token:?} is not in the vocabulary"),
            )),
        },
        None => Ok(usual.iter().find_map(|token| inner.token_to_id(token)).map(i64::from)),
    }
}

/// An error about a tokenizer, which `what` names.
pub(super) fn vocabulary(what: &str, reason: String) -> EncodeError {
    EncodeError::Vocabulary { what: what.to_string(), reason }
}
