//! The files beside a checkpoint's weights that say how it reads and ends text.

use std::path::Path;

use anyhow::Context;

/// The JSON of a file; `None` where there is no such file.
///
/// # Errors
/// If the file cannot be read or is malformed.
pub(super) fn read_json(path: &Path) -> anyhow::Result<Option<serde_json::Value>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    let json = serde_json::from_slice(&text);
    Ok(Some(json.with_context(|| format!("{} is malformed", path.display()))?))
}

/// `eos_token_id` of `generation_config.json`, else of `config.json`: one, several or none.
///
/// # Errors
/// If a file is malformed.
pub(super) fn eos_token_ids(dir: &Path) -> anyhow::Result<Vec<i64>> {
    for name in ["generation_config.json", "config.json"] {
        let Some(json) = read_json(&dir.join(name))? else { continue };
        match json.get("eos_token_id") {
            Some(serde_json::Value::Array(ids)) => {
                return Ok(ids.iter().filter_map(serde_json::Value::as_i64).collect());
            }
            Some(id) if id.is_i64() => return Ok(id.as_i64().into_iter().collect()),
            _ => {}
        }
    }
    Ok(Vec::new())
}
