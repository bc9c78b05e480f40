//! The tokenizer's and the image processor's files of a directory in LLaVA's own layout: what the published code, with the versions of
//! its day (transformers 4.37, tokenizers 0.15), reads.

use std::path::Path;

use anyhow::Context;
use dualspeed_data::picture::ProcessorFile;
use dualspeed_data::{FitMode, ImageProcessor, TextTokenizer};
use serde_json::{Value, json};

use super::text_files::read_json;
use crate::files::{write_atomic, write_json};

/// SentencePiece's file: the only one that the published code's tokenizer class reads.
const SENTENCEPIECE: &str = "tokenizer.model";
/// Files beside it that are copied as they are.
const BESIDE: [&str; 2] = ["special_tokens_map.json", "added_tokens.json"];

/// What LLaVA's `config.json` says of pictures that are fitted this way.
pub(super) fn image_aspect_ratio(fit: FitMode) -> &'static str {
    match fit {
        FitMode::Pad => "pad",
        FitMode::CentreCrop | FitMode::Resize => "square",
    }
}

/// The processor's file that the published code reads from the vision tower's directory. Padding to a square is not its affair.
pub(super) fn tower_processor(processor: &ImageProcessor) -> Value {
    let fit = match processor.fit {
        FitMode::Pad => FitMode::CentreCrop,
        fit => fit,
    };
    let processor = ImageProcessor { fit, ..processor.clone() };
    ProcessorFile { processor, pinpoints: None }.to_json()
}

/// Writes the tokenizer's files: `tokenizer.model` and those beside it where `from` has one, else a `tokenizer.json` in the older spelling.
///
/// # Errors
/// If a file cannot be read or written.
pub(super) fn write_tokenizer(
    dir: &Path,
    tokenizer: &TextTokenizer,
    from: Option<&Path>,
) -> anyhow::Result<()> {
    let text = tokenizer.inner().to_string(false);
    let text = text.map_err(|error| anyhow::anyhow!("{error}")).context("tokenizer.json")?;
    let mut description: Value = serde_json::from_str(&text).context("tokenizer.json")?;
    spell_merges(&mut description);
    write_json(&dir.join("tokenizer.json"), &description)?;
    let sentencepiece = from.filter(|from| from.join(SENTENCEPIECE).is_file());
    let token = |id: i64| u32::try_from(id).ok().and_then(|id| tokenizer.inner().id_to_token(id));
    let mut config = match sentencepiece {
        Some(from) => read_json(&from.join("tokenizer_config.json"))?.unwrap_or_else(|| json!({})),
        None => json!({}),
    };
    let class = match sentencepiece {
        Some(_) => "LlamaTokenizer",
        None => "PreTrainedTokenizerFast",
    };
    let defaults = [
        ("tokenizer_class", json!(class)),
        ("bos_token", json!(tokenizer.bos_id().and_then(token))),
        ("eos_token", json!(token(tokenizer.eos_id()))),
        ("pad_token", json!(token(tokenizer.pad_id()))),
    ];
    if let Value::Object(fields) = &mut config {
        for (name, value) in defaults {
            fields.entry(name).or_insert(value);
        }
        // The class of newer versions that reads the same file.
        if sentencepiece.is_some() && fields["tokenizer_class"] != "LlamaTokenizer" {
            fields.insert("tokenizer_class".into(), json!("LlamaTokenizer"));
        }
    }
    write_json(&dir.join("tokenizer_config.json"), &config)?;
    let Some(from) = sentencepiece else { return Ok(()) };
    for name in [SENTENCEPIECE].into_iter().chain(BESIDE) {
        let path = from.join(name);
        if path.is_file() {
            let bytes =
                std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            write_atomic(&dir.join(name), &bytes)?;
        }
    }
    Ok(())
}

/// Merges as `"a b"`, which every version reads; pairs are of tokenizers 0.20 and later. Pieces with a space in them have no other
/// spelling, so those stay pairs.
fn spell_merges(description: &mut Value) {
    let Some(Value::Array(merges)) = description.pointer_mut("/model/merges") else { return };
    let pair = |merge: &Value| {
        let [left, right] = &merge.as_array()?[..] else { return None };
        let (left, right) = (left.as_str()?, right.as_str()?);
        (!left.contains(' ') && !right.contains(' ')).then(|| json!(format!("{left} {right}")))
    };
    if let Some(spelt) = merges.iter().map(pair).collect::<Option<Vec<_>>>() {
        *merges = spelt;
    }
}
