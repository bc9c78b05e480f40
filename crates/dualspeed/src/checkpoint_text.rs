//! How a checkpoint's conversations are written out.

use std::path::Path;

use anyhow::Context;
use dualspeed_data::{ChatTemplate, Template, read_chat_template};
use serde_json::Value;

use crate::checkpoint::OpenedCheckpoint;

/// How a checkpoint's conversations are written out, and how that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointTemplate {
    /// The template.
    pub template: Template,
    /// Where it is from, in words.
    pub origin: String,
    /// Whether the checkpoint says so; else it is a guess.
    pub known: bool,
}

/// Finds the template of a checkpoint: that of LLaVA's family where an adapter or parts of LLaVA's own code were put on it, the chat
/// template in its files, or in its GGUF file, else that of its family where its files are LLaVA's own, else Vicuna's, which most
/// LLaVAs were trained with.
///
/// # Errors
/// If a file is malformed, or the chat template cannot be followed.
pub fn checkpoint_template(opened: &OpenedCheckpoint) -> anyhow::Result<CheckpointTemplate> {
    for dir in opened.load.adapter.iter().chain(&opened.load.parts).filter(|path| path.is_dir()) {
        let found = template_in(dir, None)?;
        if found.known {
            return Ok(found);
        }
    }
    let embedded = opened.vocabulary.as_ref().and_then(|own| own.chat_template.as_deref());
    template_in(&opened.base, embedded)
}

fn template_in(dir: &Path, embedded: Option<&str>) -> anyhow::Result<CheckpointTemplate> {
    if let Some(jinja) = embedded {
        let template = Template::Jinja(ChatTemplate::new(jinja)?);
        let origin = "the chat template in the file".to_owned();
        return Ok(CheckpointTemplate { template, origin, known: true });
    }
    if let Some((template, path)) = read_chat_template(dir)? {
        let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
        let origin = format!("the chat template in {}", name.unwrap_or_default());
        return Ok(CheckpointTemplate { template: Template::Jinja(template), origin, known: true });
    }
    let kind = model_type(dir)?;
    let template = match kind.as_str() {
        "llava_mistral" => Template::MistralInstruct,
        "llava_qwen" | "llava_qwen2" | "llava_qwen3" => Template::Chatml,
        _ => Template::VicunaV1,
    };
    let known =
        kind.starts_with("llava_") && !kind.starts_with("llava_next") && kind != "llava_onevision";
    let origin = match known {
        true => format!("what LLaVA's code uses for models of type {kind}"),
        false => "the checkpoint brings no chat template".to_owned(),
    };
    Ok(CheckpointTemplate { template, origin, known })
}

/// `model_type` of `config.json`; empty where there is none.
fn model_type(dir: &Path) -> anyhow::Result<String> {
    let path = dir.join("config.json");
    if !path.is_file() {
        return Ok(String::new());
    }
    let text = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let json: Value = serde_json::from_slice(&text)
        .with_context(|| format!("{} is malformed", path.display()))?;
    Ok(json.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned())
}
