//! A byte-level BPE tokenizer from its parts, as GGUF files keep them.

use serde_json::json;
use tokenizers::Tokenizer;

use super::tokenizer::{SpecialTokens, TextTokenizer};
use crate::error::EncodeError;

/// The parts of a byte-level BPE tokenizer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BpeVocabulary {
    /// All tokens, by id.
    pub tokens: Vec<String>,
    /// Merges, `"a b"`, best first.
    pub merges: Vec<String>,
    /// How text is cut first, by llama.cpp's name: `smollm` or `gpt-2`.
    pub pre: String,
    /// Ids of tokens that no text spells.
    pub special: Vec<u32>,
    /// Begins a sequence.
    pub bos: Option<u32>,
    /// Ends an answer.
    pub eos: Option<u32>,
}

impl BpeVocabulary {
    /// Makes the tokenizer.
    ///
    /// # Errors
    /// If the way text is cut first is not known, or parts do not fit together.
    pub fn tokenizer(&self) -> Result<TextTokenizer, EncodeError> {
        let wrong =
            |reason: String| EncodeError::Vocabulary { what: "BPE vocabulary".into(), reason };
        let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        let cut = match self.pre.as_str() {
            "smollm" => json!({ "type": "Sequence", "pretokenizers": [
                { "type": "Digits", "individual_digits": true }, bytes,
            ] }),
            "gpt-2" | "default" => bytes.clone(),
            other => {
                return Err(wrong(format!(
                    "text is cut as in {other:?}, which is not known here; put the model's tokenizer.json beside the file"
                )));
            }
        };
        let name = |id: u32| {
            let token = self.tokens.get(id as usize).cloned();
            token
                .ok_or_else(|| wrong(format!("id {id} is beyond its {} tokens", self.tokens.len())))
        };
        let added = self
            .special
            .iter()
            .map(|id| {
                Ok(json!({ "id": id, "content": name(*id)?, "single_word": false, "lstrip": false, "rstrip": false,
                           "normalized": false, "special": true }))
            })
            .collect::<Result<Vec<_>, EncodeError>>()?;
        let vocab: serde_json::Map<String, serde_json::Value> =
            self.tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
        let description = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
            "pre_tokenizer": cut, "post_processor": null,
            "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocab,
                "merges": self.merges,
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
}
