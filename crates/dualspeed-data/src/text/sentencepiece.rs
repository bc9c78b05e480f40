//! A sentencepiece tokenizer from its parts: those of `tokenizer.model`, or of a GGUF file.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use tokenizers::normalizers::{Precompiled, Sequence};
use tokenizers::{NormalizerWrapper, Tokenizer};

use super::tokenizer::{SpecialTokens, TextTokenizer};
use crate::error::EncodeError;

/// How text is cut into pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PieceKind {
    /// Pieces are merged pair by pair, the pair whose sum has the best score first (Llama 2's and Vicuna's).
    #[default]
    Bpe,
    /// The cut with the best sum of scores. Unlike sentencepiece, the tokenizer takes text that spells a control piece
    /// or a byte for it.
    Unigram,
}

/// Where a space is put before text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpacePrefix {
    /// Before every piece of text between special tokens, as sentencepiece does with each (`"legacy": true`).
    #[default]
    EveryPiece,
    /// Before a text only, not behind special tokens in it (`"legacy": false`).
    FirstPiece,
    /// Nowhere.
    Never,
}

/// A token beside the pieces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedPiece {
    /// Its id.
    pub id: u32,
    /// Its text.
    pub content: String,
    /// Whether no text spells it.
    pub special: bool,
    /// Whether white space before it belongs to it.
    pub lstrip: bool,
    /// Whether white space behind it belongs to it.
    pub rstrip: bool,
    /// Whether it is looked for in normalised text.
    pub normalized: bool,
}

/// The parts of a sentencepiece tokenizer. What no piece spells is written in bytes, `<0x0A>`, where it has them.
#[derive(Clone, Debug, PartialEq)]
pub struct SentencePieceVocabulary {
    /// All pieces, by id; a space is `\u{2581}`.
    pub tokens: Vec<String>,
    /// Scores of the pieces, by id.
    pub scores: Vec<f32>,
    /// Ids of pieces that no text spells.
    pub control: Vec<u32>,
    /// Ids of pieces that are cut out of a text before anything else.
    pub user_defined: Vec<u32>,
    /// Ids of pieces that stand for a byte.
    pub bytes: Vec<u32>,
    /// Tokens beside the pieces, and what is to be known of pieces beyond that.
    pub added: Vec<AddedPiece>,
    /// Stands for what neither pieces nor bytes spell.
    pub unknown: Option<u32>,
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Ends an answer.
    pub eos: Option<u32>,
    /// Ids that the tokenizer itself puts before and behind a text.
    pub around: [Option<u32>; 2],
    /// How text is cut.
    pub kind: PieceKind,
    /// Where a space is put before text.
    pub space: SpacePrefix,
    /// Whether what no piece spells is written in bytes.
    pub byte_fallback: bool,
    /// Whether runs of spaces become one, and none stay at the ends.
    pub collapse_spaces: bool,
    /// Sentencepiece's compiled table of characters to replace; empty for none.
    pub charsmap: Vec<u8>,
}

impl Default for SentencePieceVocabulary {
    /// Makes an empty vocabulary that is cut as Llama 2's.
    fn default() -> Self {
        Self {
            tokens: Vec::new(),
            scores: Vec::new(),
            control: Vec::new(),
            user_defined: Vec::new(),
            bytes: Vec::new(),
            added: Vec::new(),
            unknown: None,
            bos: None,
            eos: None,
            around: [None, None],
            kind: PieceKind::Bpe,
            space: SpacePrefix::EveryPiece,
            byte_fallback: true,
            collapse_spaces: false,
            charsmap: Vec::new(),
        }
    }
}

/// Sentencepiece's space.
const SPACE: &str = "\u{2581}";

impl SentencePieceVocabulary {
    /// Makes the tokenizer.
    ///
    /// # Errors
    /// If parts are missing or do not fit together.
    pub fn tokenizer(&self) -> Result<TextTokenizer, EncodeError> {
        let special = SpecialTokens {
            bos: self.bos.map(|id| self.name(id)).transpose()?,
            eos: self.eos.map(|id| self.name(id)).transpose()?,
            ..SpecialTokens::default()
        };
        TextTokenizer::new(self.inner()?, &special)
    }

    /// Makes the tokenizer of the `tokenizers` crate.
    ///
    /// # Errors
    /// If parts are missing or do not fit together.
    pub(super) fn inner(&self) -> Result<Tokenizer, EncodeError> {
        let (count, scores) = (self.tokens.len(), self.scores.len());
        if count != scores {
            return Err(wrong(format!("{count} pieces but {scores} scores; the file is damaged")));
        }
        let unknown = self.name(self.unknown.unwrap_or(0))?;
        let description = json!({
            "version": "1.0", "truncation": null, "padding": null,
            "added_tokens": self.added_tokens()?,
            "normalizer": self.normalizer(),
            "pre_tokenizer": self.pre_tokenizer(),
            "post_processor": self.post_processor()?,
            "decoder": self.decoder(),
            "model": self.model(&unknown),
        });
        let mut inner = Tokenizer::from_bytes(description.to_string())
            .map_err(|error| wrong(error.to_string()))?;
        if !self.charsmap.is_empty() {
            let table = Precompiled::from(&self.charsmap)
                .map_err(|error| wrong(format!("its table of characters: {error}")))?;
            let after = inner.get_normalizer().cloned();
            let all = [Some(NormalizerWrapper::Precompiled(table)), after];
            inner.with_normalizer(Some(Sequence::new(all.into_iter().flatten().collect())));
        }
        for AddedPiece { id, content, .. } in &self.added {
            let found = inner.token_to_id(content);
            if found != Some(*id) {
                return Err(wrong(format!(
                    "the added token {content:?} should have the id {id}, but gets {found:?}: ids of added tokens must \
                     follow on the {count} pieces"
                )));
            }
        }
        Ok(inner)
    }

    fn name(&self, id: u32) -> Result<String, EncodeError> {
        let own = self.tokens.get(id as usize).cloned();
        let added = || self.added.iter().find(|added| added.id == id);
        own.or_else(|| added().map(|added| added.content.clone()))
            .ok_or_else(|| wrong(format!("id {id} is beyond its {} pieces", self.tokens.len())))
    }

    /// Control and user-defined pieces, and tokens beside the pieces, by id.
    fn added_tokens(&self) -> Result<Vec<Value>, EncodeError> {
        let mut added: BTreeMap<u32, AddedPiece> = BTreeMap::new();
        let piece = |id: u32, special| {
            Ok(AddedPiece {
                id,
                content: self.name(id)?,
                special,
                lstrip: false,
                rstrip: false,
                normalized: false,
            })
        };
        for &id in &self.user_defined {
            added.insert(id, piece(id, false)?);
        }
        for &id in self.control.iter().chain(&self.unknown) {
            added.insert(id, piece(id, true)?);
        }
        added.extend(self.added.iter().map(|added| (added.id, added.clone())));
        let json = added.into_values().map(|token| {
            json!({ "id": token.id, "content": token.content, "single_word": false, "lstrip": token.lstrip,
                    "rstrip": token.rstrip, "normalized": token.normalized, "special": token.special })
        });
        Ok(json.collect())
    }

    fn normalizer(&self) -> Value {
        let replace = |pattern: Value, content: &str| json!({ "type": "Replace", "pattern": pattern, "content": content });
        let mut all = Vec::new();
        if self.collapse_spaces {
            // At the end a space that was written as sentencepiece's own counts too.
            all.push(replace(json!({ "Regex": format!("^ +|[ {SPACE}]+$") }), ""));
            all.push(replace(json!({ "Regex": " {2,}" }), " "));
        }
        // Metaspace does the rest where the space depends on the place in the text.
        if self.space != SpacePrefix::FirstPiece {
            if self.space == SpacePrefix::EveryPiece {
                all.push(json!({ "type": "Prepend", "prepend": SPACE }));
            }
            all.push(replace(json!({ "String": " " }), SPACE));
        }
        match all.is_empty() {
            true => Value::Null,
            false => json!({ "type": "Sequence", "normalizers": all }),
        }
    }

    fn pre_tokenizer(&self) -> Value {
        match self.space {
            SpacePrefix::FirstPiece => {
                json!({ "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "first", "split": false })
            }
            SpacePrefix::EveryPiece | SpacePrefix::Never => Value::Null,
        }
    }

    fn post_processor(&self) -> Result<Value, EncodeError> {
        let [before, after] = self.around;
        if before.is_none() && after.is_none() {
            return Ok(Value::Null);
        }
        let mut tokens = serde_json::Map::new();
        let mut special = |id: Option<u32>| -> Result<Option<Value>, EncodeError> {
            let Some(id) = id else { return Ok(None) };
            let name = self.name(id)?;
            tokens.insert(name.clone(), json!({ "id": name, "ids": [id], "tokens": [name] }));
            Ok(Some(json!({ "SpecialToken": { "id": name, "type_id": 0 } })))
        };
        let (before, after) = (special(before)?, special(after)?);
        let text = |name: &str| json!({ "Sequence": { "id": name, "type_id": 0 } });
        let one = |name| [before.clone(), Some(text(name)), after.clone()].into_iter().flatten();
        let single: Vec<Value> = one("A").collect();
        let pair: Vec<Value> = one("A").chain(one("B")).collect();
        Ok(
            json!({ "type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens }),
        )
    }

    fn decoder(&self) -> Value {
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": SPACE }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if self.space != SpacePrefix::Never {
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        json!({ "type": "Sequence", "decoders": decoders })
    }

    fn model(&self, unknown: &str) -> Value {
        match self.kind {
            PieceKind::Bpe => {
                let ids = self.tokens.iter().enumerate();
                let vocab: serde_json::Map<String, Value> =
                    ids.map(|(id, token)| (token.clone(), json!(id))).collect();
                json!({
                    "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                    "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": self.byte_fallback,
                    "vocab": vocab, "merges": self.merges(),
                })
            }
            PieceKind::Unigram => {
                let pieces = self.tokens.iter().zip(&self.scores);
                let vocab: Vec<_> = pieces.map(|(token, score)| json!([token, score])).collect();
                json!({
                    "type": "Unigram", "unk_id": self.unknown, "byte_fallback": self.byte_fallback, "vocab": vocab,
                })
            }
        }
    }

    /// Every pair of pieces that makes a piece, the best first: a BPE tokenizer with these merges picks the pairs that
    /// sentencepiece picks. Pieces that no text spells are made of none.
    fn merges(&self) -> Vec<[&str; 2]> {
        let reserved: BTreeSet<u32> =
            self.control.iter().chain(&self.bytes).chain(&self.unknown).copied().collect();
        let pieces = || {
            let ids = self.tokens.iter().enumerate();
            ids.filter(|(id, _)| !reserved.contains(&(*id as u32)))
        };
        let ids: BTreeMap<&str, usize> = pieces().map(|(id, token)| (token.as_str(), id)).collect();
        let mut found = Vec::new();
        for (id, token) in pieces() {
            for (at, _) in token.char_indices().skip(1) {
                let (left, right) = token.split_at(at);
                if let (Some(l), Some(r)) = (ids.get(left), ids.get(right)) {
                    found.push((self.scores[id], id, *l, *r, [left, right]));
                }
            }
        }
        found.sort_by(|a, b| b.0.total_cmp(&a.0).then((a.1, a.2, a.3).cmp(&(b.1, b.2, b.3))));
        found.into_iter().map(|(.., pair)| pair).collect()
    }
}

fn wrong(reason: String) -> EncodeError {
    EncodeError::Vocabulary { what: "sentencepiece vocabulary".into(), reason }
}
