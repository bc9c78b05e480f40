//! A sentencepiece tokenizer (the BPE kind, Llama 2's and Vicuna's) from its parts, as GGUF files keep them.

use std::collections::BTreeMap;

use serde_json::json;
use tokenizers::Tokenizer;

use super::tokenizer::{SpecialTokens, TextTokenizer};
use crate::error::EncodeError;

/// The parts of a sentencepiece tokenizer. Pieces are merged pair by pair, the pair whose sum has the best score first;
/// what no piece spells is written in bytes, `<0x0A>`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SentencePieceVocabulary {
    /// All pieces, by id; a space is `\u{2581}`.
    pub tokens: Vec<String>,
    /// Scores of the pieces, by id.
    pub scores: Vec<f32>,
    /// Ids of pieces that no text spells.
    pub control: Vec<u32>,
    /// Ids of pieces that are cut out of a text before anything else.
    pub user_defined: Vec<u32>,
    /// Stands for what neither pieces nor bytes spell.
    pub unknown: Option<u32>,
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Ends an answer.
    pub eos: Option<u32>,
    /// Whether a text is put behind a space before it is cut.
    pub add_space_prefix: bool,
}

impl SentencePieceVocabulary {
    /// Makes the tokenizer.
    ///
    /// # Errors
    /// If parts are missing or do not fit together.
    pub fn tokenizer(&self) -> Result<TextTokenizer, EncodeError> {
        let wrong = |reason: String| EncodeError::Vocabulary {
            what: "sentencepiece vocabulary".into(),
            reason,
        };
        let (count, scores) = (self.tokens.len(), self.scores.len());
        if count != scores {
            return Err(wrong(format!("{count} pieces but {scores} scores; the file is damaged")));
        }
        let name = |id: u32| {
            let token = self.tokens.get(id as usize).cloned();
            token.ok_or_else(|| wrong(format!("id {id} is beyond its {count} pieces")))
        };
        let unknown = name(self.unknown.unwrap_or(0))?;
        let control = self.control.iter().chain(&self.unknown).map(|id| (*id, true));
        let added: BTreeMap<u32, bool> =
            self.user_defined.iter().map(|id| (*id, false)).chain(control).collect();
        let added = added
            .into_iter()
            .map(|(id, special)| {
                Ok(json!({ "id": id, "content": name(id)?, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false, "special": special }))
            })
            .collect::<Result<Vec<_>, EncodeError>>()?;
        let vocab: serde_json::Map<String, serde_json::Value> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let space =
            json!({ "type": "Replace", "pattern": { "String": " " }, "content": "\u{2581}" });
        let mut normalizers = vec![space];
        let mut decoders = vec![
            json!({ "type": "Replace", "pattern": { "String": "\u{2581}" }, "content": " " }),
            json!({ "type": "ByteFallback" }),
            json!({ "type": "Fuse" }),
        ];
        if self.add_space_prefix {
            normalizers.insert(0, json!({ "type": "Prepend", "prepend": "\u{2581}" }));
            decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
        }
        let description = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": { "type": "Sequence", "normalizers": normalizers },
            "pre_tokenizer": null, "post_processor": null,
            "decoder": { "type": "Sequence", "decoders": decoders },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "vocab": vocab,
                "merges": self.merges(),
            },
        });
        let inner = Tokenizer::from_bytes(description.to_string())
            .map_err(|error| wrong(error.to_string()))?;
        let special = SpecialTokens {
            bos: self.bos.map(name).transpose()?,
            eos: self.eos.map(name).transpose()?,
            ..SpecialTokens::default()
        };
        TextTokenizer::new(inner, &special)
    }

    /// Every pair of pieces that makes a piece, the best first: a BPE tokenizer with these merges picks the pairs that
    /// sentencepiece picks.
    fn merges(&self) -> Vec<[&str; 2]> {
        let ids: BTreeMap<&str, usize> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.as_str(), id)).collect();
        let mut found = Vec::new();
        for (id, token) in self.tokens.iter().enumerate() {
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
