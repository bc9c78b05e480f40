//! What a run takes from the checkpoint that it starts from: tokenizer, template and image fit.

use anyhow::Context;
use dualspeed_data::{FitMode, Template, read_tokenizer};
use dualspeed_train::config::LlavaJsonSection;
use dualspeed_train::{Stage, TrainConfig};

use crate::checkpoint::OpenedCheckpoint;
use crate::checkpoint_text::{CheckpointTemplate, checkpoint_template};

/// Fills in what the sections of conversations from disk leave to the checkpoint. Returns a line on everything that was
/// taken, and a warning where a template leaves something to be known.
///
/// # Errors
/// If a file of the checkpoint is malformed, or its chat template cannot be followed.
pub(crate) fn adopt_text(
    config: &mut TrainConfig,
    opened: &OpenedCheckpoint,
) -> anyhow::Result<Vec<String>> {
    let pretrain = config.stage == Stage::Pretrain;
    let mut notes = Vec::new();
    let data = &mut config.data;
    let valid = data.valid.as_mut().and_then(|valid| valid.llava_json.as_mut());
    let sections = [("data.train", data.train.llava_json.as_mut()), ("data.valid", valid)];
    for (key, section) in sections {
        if let Some(section) = section {
            adopt_section(section, key, opened, pretrain, &mut notes)?;
        }
    }
    Ok(notes)
}

fn adopt_section(
    section: &mut LlavaJsonSection,
    key: &str,
    opened: &OpenedCheckpoint,
    pretrain: bool,
    notes: &mut Vec<String>,
) -> anyhow::Result<()> {
    let key = format!("{key}.llava_json");
    if section.tokenizer.is_none() {
        let found = ["tokenizer.json", "tokenizer.model"].map(|name| opened.base.join(name));
        section.tokenizer = found.into_iter().find(|path| path.is_file());
        if let Some(path) = &section.tokenizer {
            notes.push(format!("{key}: tokenizer: {}", path.display()));
        }
    }
    if section.fit.is_none() {
        let (fit, origin) = opened.image_fit().with_context(|| format!("or set {key}.fit"))?;
        section.fit = Some(fit);
        notes.push(format!("{key}: fit: {} ({origin})", name_of(fit)));
    }
    if section.template.is_none() {
        let CheckpointTemplate { template, origin, .. } = checkpoint_template(opened)?;
        let used = template.name().map(|name| format!("{name}: ")).unwrap_or_default();
        notes.push(format!("{key}: template: {used}{origin}"));
        if pretrain {
            notes.push(format!(
                "{key}: the published first stage writes captions without the chat: {key}.template = \"plain\""
            ));
        }
        notes.extend(about(&template, section, &key)?);
        section.template = Some(template);
    }
    Ok(())
}

/// What a template makes of the section that a reader might not expect.
fn about(
    template: &Template,
    section: &LlavaJsonSection,
    key: &str,
) -> anyhow::Result<Vec<String>> {
    let Some(path) = &section.tokenizer else { return Ok(Vec::new()) };
    let tokenizer = read_tokenizer(path)?;
    let mut notes = Vec::new();
    notes.push(match (&section.system, template.own_system(&tokenizer)?) {
        (None, Some(own)) => format!("{key}: system prompt: the template's own, {own:?}"),
        (None, None) => format!("{key}: system prompt: none, the template has none of its own"),
        (Some(system), _) => format!("{key}: system prompt: {system:?}"),
    });
    if !template.ends_answers(&tokenizer)? {
        let end = tokenizer.token(tokenizer.eos_id()).unwrap_or_default();
        notes.push(format!(
            "{key}: the template ends no answer with an end token, so a model would not learn to stop: {end:?} is put behind \
             the last answer of every record; a template that ends every answer (vicuna_v1) can be chosen with {key}.template"
        ));
    }
    Ok(notes)
}

fn name_of(fit: FitMode) -> &'static str {
    match fit {
        FitMode::Resize => "resize",
        FitMode::Pad => "pad",
        FitMode::CentreCrop => "centre_crop",
    }
}
