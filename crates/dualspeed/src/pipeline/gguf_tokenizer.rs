//! The tokenizer in a GGUF file.

use dualspeed_data::{BpeVocabulary, SentencePieceVocabulary, SpacePrefix, TextTokenizer};
use dualspeed_model::import::GgufVocabulary;

/// Makes a tokenizer of a GGUF file's vocabulary.
///
/// # Errors
/// If the algorithm is neither `gpt2` nor `llama`, or the vocabulary's parts do not fit together.
pub fn gguf_tokenizer(vocabulary: &GgufVocabulary) -> anyhow::Result<TextTokenizer> {
    let GgufVocabulary { model, pre, tokens, special, merges, bos, eos, .. } = vocabulary.clone();
    Ok(match model.as_str() {
        "gpt2" => BpeVocabulary { tokens, merges, pre, special, bos, eos }.tokenizer()?,
        "llama" => {
            let user_defined = vocabulary.user_defined.clone();
            let control = special.into_iter().filter(|id| !user_defined.contains(id)).collect();
            SentencePieceVocabulary {
                tokens,
                scores: vocabulary.scores.clone(),
                control,
                user_defined,
                unknown: vocabulary.unknown,
                bos,
                eos,
                space: match vocabulary.add_space_prefix {
                    true => SpacePrefix::EveryPiece,
                    false => SpacePrefix::Never,
                },
                ..SentencePieceVocabulary::default()
            }
            .tokenizer()?
        }
        other => anyhow::bail!(
            "the file's tokenizer is of the kind {other:?}; gpt2 and llama are read from GGUF: put the model's \
             tokenizer.json beside the file"
        ),
    })
}
