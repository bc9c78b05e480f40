//! Chat templates from the files of a checkpoint.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::chat_template::{ChatTemplate, template_error};
use super::tokenizer_file::read_json;
use crate::error::EncodeError;

/// The file that transformers has kept chat templates in since 4.50.
const JINJA: &str = "chat_template.jinja";

/// JSON files with a key `chat_template`: the processor's, before the tokenizer's.
const JSON: [&str; 3] = ["chat_template.json", "processor_config.json", "tokenizer_config.json"];

/// Reads the chat template of a checkpoint's directory, and tells which file it is from; `None` if the checkpoint brings none.
///
/// Where a file has several templates by name, the one named `default` is taken, as transformers does.
///
/// # Errors
/// [`EncodeError::Template`] if a file cannot be read or its template cannot be followed; [`EncodeError::Vocabulary`] if a
/// JSON file is malformed.
pub fn read_chat_template(dir: &Path) -> Result<Option<(ChatTemplate, PathBuf)>, EncodeError> {
    let path = dir.join(JINJA);
    if path.is_file() {
        return Ok(Some((ChatTemplate::read(&path)?, path)));
    }
    for name in JSON {
        let path = dir.join(name);
        let what = path.display().to_string();
        let json = read_json(&path)?;
        let text = match json.get("chat_template") {
            None | Some(Value::Null) => continue,
            Some(Value::String(text)) => text.clone(),
            Some(several) => {
                default_of(several).map_err(|problem| template_error(&what, problem))?
            }
        };
        let template = ChatTemplate::new(text).map_err(|error| error.in_template(&what))?;
        return Ok(Some((template, path)));
    }
    Ok(None)
}

/// The template named `default` of a list of `{"name": .., "template": ..}`, or of an object with names as keys.
fn default_of(several: &Value) -> Result<String, String> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let named: Vec<(String, String)> = match several {
        Value::Object(map) => {
            map.iter().filter_map(|(name, value)| Some((name.clone(), text(value)?))).collect()
        }
        Value::Array(list) => list
            .iter()
            .filter_map(|entry| Some((text(entry.get("name")?)?, text(entry.get("template")?)?)))
            .collect(),
        _ => return Err("`chat_template` is neither text nor a list of named texts".into()),
    };
    let found = named.iter().find(|(name, _)| name == "default");
    found.map(|(_, text)| text.clone()).ok_or_else(|| {
        let names: Vec<&str> = named.iter().map(|(name, _)| name.as_str()).collect();
        format!("it has templates named {names:?}, and none of them is `default`")
    })
}
