//! A tokenizer with the few special ids the templates need.

use std::borrow::Cow;
use std::collections::BTreeMap;

use minijinja::Value;
use serde_json::json;
use tokenizers::Tokenizer;

use super::conversation::plain_text;
use super::rendered_text::{PlacedToken, RenderedText};
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
    /// Other tokens by the names that chat templates know them by: `unk_token`, `image_token`, ...
    pub others: BTreeMap<String, String>,
}

/// A `tokenizers` tokenizer that never turns a conversation's text into special tokens: text that spells `</s>` stays text.
#[derive(Clone, Debug)]
pub struct TextTokenizer {
    inner: Tokenizer,
    bos: Option<i64>,
    eos: i64,
    pad: i64,
    vocab_size: usize,
    rendered: RenderedText,
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
        let token = |id: i64| u32::try_from(id).ok().and_then(|id| inner.id_to_token(id));
        let mut names = special.others.clone();
        let own = [("bos_token", bos), ("eos_token", Some(eos)), ("pad_token", Some(pad))];
        names.extend(own.into_iter().filter_map(|(name, id)| Some((name.to_owned(), token(id?)?))));
        let rendered = RenderedText::new(&inner, &names)?;
        Ok(Self { inner, bos, eos, pad, vocab_size, rendered })
    }

    /// The same tokenizer, following LLaVA's published code where that departs from how transformers tokenizes a chat: text is
    /// cut at images and every piece tokenized as if it began a text, answers keep the white space at their ends, and `plain`
    /// ends in a newline.
    pub fn official(mut self, official: bool) -> Self {
        self.rendered.set_official(official);
        self
    }

    /// Whether it follows LLaVA's published code.
    pub fn is_official(&self) -> bool {
        self.rendered.is_official()
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

    /// Encodes a conversation that a template wrote out.
    pub(super) fn encode_rendered(&self, text: &str) -> Result<Vec<PlacedToken>, EncodeError> {
        self.rendered.encode(&self.inner, text)
    }

    /// The special tokens by their names, for chat templates.
    pub(super) fn variables(&self) -> &Value {
        &self.rendered.variables
    }

    /// The token of an id.
    pub fn token(&self, id: i64) -> Option<String> {
        u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id))
    }

    /// Id of the token that stands for an image in transformers' prompts, if the vocabulary has it.
    pub fn image_id(&self) -> Option<i64> {
        self.token_to_id(self.image_token())
    }

    /// What stands for an image in a text that a template wrote.
    pub fn image_token(&self) -> &str {
        &self.rendered.image_token
    }

    /// Breaks up special tokens that a conversation's text spells with `guard`, so that they stay text.
    pub(super) fn guard<'a>(&self, text: &'a str, guard: char) -> Cow<'a, str> {
        self.rendered.guard(text, guard)
    }

    /// Whether text that a template wrote ends in a special token, white space aside.
    pub(super) fn ends_with_special(&self, text: &str) -> bool {
        self.rendered.ends_with_special(text)
    }

    /// The special token that text begins with.
    pub(super) fn leading_special(&self, text: &str) -> Option<&str> {
        self.rendered.leading_special(text)
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
