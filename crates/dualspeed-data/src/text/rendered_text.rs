//! Text that a template wrote, to tokens, as transformers tokenizes it.

use std::borrow::Cow;
use std::collections::BTreeMap;

use minijinja::Value;
use tokenizers::{
    AddedToken, AddedVocabulary, Model, NormalizedString, OffsetType, PreTokenizer, Tokenizer,
};

use super::builtin::BUILTIN;
use super::ids::IMAGE_TOKEN_INDEX;
use super::marks::GUARD;
use crate::error::EncodeError;

/// The image token of tokenizers that name none.
const IMAGE_TOKEN: &str = "<image>";

/// A token and the bytes of the text that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlacedToken {
    /// The id; [`IMAGE_TOKEN_INDEX`] for an image.
    pub(super) id: i64,
    /// Where its bytes begin.
    pub(super) start: usize,
    /// Where its bytes end.
    pub(super) end: usize,
}

/// How a written-out conversation is tokenized: special tokens in it are found, and those that the tokenizer puts around any
/// text are put around it unless it begins with the begin token already.
#[derive(Clone, Debug)]
pub(super) struct RenderedText {
    /// The tokenizer's added tokens, and those that templates write.
    added: AddedVocabulary,
    /// Tokens that a conversation's text must not spell; the longest first.
    special: Vec<String>,
    pub(super) image_token: String,
    image_id: Option<u32>,
    bos: Option<String>,
    /// Ids that the tokenizer puts before and after a text.
    around: [Vec<i64>; 2],
    pub(super) variables: Value,
    official: bool,
}

impl RenderedText {
    /// Finds out how `inner` tokenizes text with special tokens; `names` are those that its files name.
    pub(super) fn new(
        inner: &Tokenizer,
        names: &BTreeMap<String, String>,
    ) -> Result<Self, EncodeError> {
        let image_token = names.get("image_token").map_or(IMAGE_TOKEN, String::as_str).to_owned();
        let mut added = inner.get_added_vocabulary().clone();
        added.set_encode_special_tokens(false);
        let own =
            BUILTIN.iter().flat_map(|builtin| builtin.tokens).map(|token| (*token).to_owned());
        let missing: Vec<AddedToken> = names
            .values()
            .cloned()
            .chain(own)
            .filter(|token| inner.token_to_id(token).is_some())
            .chain([image_token.clone()])
            .filter(|token| !added.get_vocab().contains_key(token))
            .map(|token| AddedToken::from(token, true).normalized(false))
            .collect();
        added.add_special_tokens(&missing, inner.get_model(), inner.get_normalizer());
        let tokens = added.get_added_tokens_decoder().values();
        let mut special: Vec<String> = tokens
            .filter(|token| token.special || token.content == image_token)
            .map(|token| token.content.clone())
            .collect();
        special.sort_by_key(|token| (std::cmp::Reverse(token.len()), token.clone()));
        let image_id = added.token_to_id(&image_token, inner.get_model());
        let named = names.iter().map(|(name, token)| (name.clone(), Value::from(token)));
        let variables = named.chain([("image_token".to_owned(), Value::from(&image_token))]);
        Ok(Self {
            special,
            image_id,
            bos: names.get("bos_token").cloned(),
            around: around(inner)?,
            variables: Value::from_pairs(variables),
            official: false,
            added,
            image_token,
        })
    }

    /// Follows LLaVA's published code or not; templates know it by the name `official`.
    pub(super) fn set_official(&mut self, official: bool) {
        self.official = official;
        let variables = std::mem::take(&mut self.variables);
        let own = Value::from_pairs([("official", Value::from(official))]);
        self.variables = minijinja::value::merge_maps([variables, own]);
    }

    /// Whether it follows LLaVA's published code.
    pub(super) fn is_official(&self) -> bool {
        self.official
    }

    /// Encodes a text. Special tokens in it become special tokens, the image token becomes [`IMAGE_TOKEN_INDEX`], and guards
    /// are left out.
    pub(super) fn encode(
        &self,
        inner: &Tokenizer,
        text: &str,
    ) -> Result<Vec<PlacedToken>, EncodeError> {
        let begun = self.bos.as_deref().is_some_and(|bos| text.starts_with(bos));
        let [before, after] = &self.around;
        let mut tokens = Vec::new();
        if !begun {
            tokens.extend(before.iter().map(|&id| PlacedToken { id, start: 0, end: 0 }));
        }
        if self.official {
            let mut start = 0;
            for (index, piece) in text.split(&self.image_token).enumerate() {
                if index > 0 {
                    let end = start + self.image_token.len();
                    tokens.push(PlacedToken { id: IMAGE_TOKEN_INDEX, start, end });
                    start = end;
                }
                self.encode_piece(inner, piece, start, &mut tokens)?;
                start += piece.len();
            }
        } else {
            self.encode_piece(inner, text, 0, &mut tokens)?;
        }
        if !begun {
            let end = text.len();
            tokens.extend(after.iter().map(|&id| PlacedToken { id, start: end, end }));
        }
        Ok(tokens)
    }

    /// Does what `Tokenizer::encode` does, with this vocabulary of added tokens and guards left out.
    fn encode_piece(
        &self,
        inner: &Tokenizer,
        piece: &str,
        offset: usize,
        tokens: &mut Vec<PlacedToken>,
    ) -> Result<(), EncodeError> {
        let failed = |error: tokenizers::Error| EncodeError::Tokenizer {
            text: piece.chars().take(60).collect(),
            reason: error.to_string(),
        };
        let mut cut = self.added.extract_and_normalize(inner.get_normalizer(), piece);
        if piece.contains(GUARD) {
            cut.normalize(|text: &mut NormalizedString| text.replace(GUARD, "")).map_err(failed)?;
        }
        if let Some(pre_tokenizer) = inner.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut cut).map_err(failed)?;
        }
        cut.tokenize(|text| inner.get_model().tokenize(text.get())).map_err(failed)?;
        let encoding = cut.into_encoding(None, 0, OffsetType::Byte).map_err(failed)?;
        let placed = encoding.get_ids().iter().zip(encoding.get_offsets());
        tokens.extend(placed.map(|(&id, &(start, end))| {
            // The token may also be what a word becomes that no other spells.
            let image = Some(id) == self.image_id
                && piece.get(start..end).is_some_and(|text| text.trim() == self.image_token);
            let id = if image { IMAGE_TOKEN_INDEX } else { i64::from(id) };
            PlacedToken { id, start: offset + start, end: offset + end }
        }));
        Ok(())
    }

    /// Breaks up special tokens in a text.
    pub(super) fn guard<'a>(&self, text: &'a str, guard: char) -> Cow<'a, str> {
        let mut guarded = Cow::Borrowed(text);
        for token in &self.special {
            let mut chars = token.chars();
            let Some(first) = chars.next().filter(|_| guarded.contains(token.as_str())) else {
                continue;
            };
            let broken = format!("{first}{guard}{}", chars.as_str());
            guarded = Cow::Owned(guarded.replace(token.as_str(), &broken));
        }
        guarded
    }

    /// The special token that a text begins with; an image is none.
    pub(super) fn leading_special(&self, text: &str) -> Option<&str> {
        let mut tokens = self.special.iter().filter(|token| **token != self.image_token);
        tokens.find(|token| text.starts_with(token.as_str())).map(String::as_str)
    }

    /// Whether a text ends in a special token, white space aside.
    pub(super) fn ends_with_special(&self, text: &str) -> bool {
        let text = text.trim_end();
        self.special.iter().any(|token| text.ends_with(token.as_str()))
    }
}

/// What the tokenizer puts before and after a text.
fn around(inner: &Tokenizer) -> Result<[Vec<i64>; 2], EncodeError> {
    let encoding = inner
        .encode("a", true)
        .map_err(|error| EncodeError::Tokenizer { text: "a".into(), reason: error.to_string() })?;
    let ids: Vec<i64> = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
    let mask = encoding.get_special_tokens_mask();
    let text = mask.iter().position(|&special| special == 0);
    let end = mask.iter().rposition(|&special| special == 0);
    Ok(match (text, end) {
        (Some(start), Some(end)) => [ids[..start].to_vec(), ids[end + 1..].to_vec()],
        _ => [Vec::new(), Vec::new()],
    })
}
