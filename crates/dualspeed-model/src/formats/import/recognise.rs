//! Files that are not what their names promise, recognised by what is in them: git-lfs pointers and quantised weights.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use dualspeed_core::git_lfs;
use serde_json::Value;

use super::error::ImportError;
use super::json::Json;
use super::source::{TensorInfo, WeightSource};

/// Refuses the text that git-lfs leaves in a file's place.
///
/// # Errors
/// [`ImportError::Malformed`] if the file is one; [`ImportError::Read`] if it cannot be read.
pub(super) fn refuse_pointer(path: &Path) -> Result<(), ImportError> {
    let mut head = Vec::new();
    let file = File::open(path).map_err(ImportError::read(path))?;
    file.take(64).read_to_end(&mut head).map_err(ImportError::read(path))?;
    match git_lfs::is_pointer(&head) {
        true => Err(ImportError::malformed(path, git_lfs::ADVICE)),
        false => Ok(()),
    }
}

/// How a `config.json` says that its weights are quantised, e.g. `bitsandbytes, 4 bits`.
///
/// # Errors
/// [`ImportError::Config`] if `quantization_config` is no object.
pub(super) fn quantised(json: &Json<'_>) -> Result<Option<String>, ImportError> {
    let text = json.object("text_config")?;
    let Some(place) = [json, &text].into_iter().find(|json| json.has("quantization_config")) else {
        return Ok(None);
    };
    let own = place.object("quantization_config")?;
    let flag = |field| own.get(field).and_then(Value::as_bool) == Some(true);
    let packed = flag("load_in_4bit") || flag("load_in_8bit");
    let method =
        own.str("quant_method")?.unwrap_or(if packed { "bitsandbytes" } else { "unknown" });
    let bits = match (own.int("bits")?, flag("load_in_4bit"), flag("load_in_8bit")) {
        (Some(bits), ..) => Some(bits),
        (None, true, _) => Some(4),
        (None, false, true) => Some(8),
        _ => None,
    };
    Ok(Some(match bits {
        Some(bits) => format!("{method}, {bits} bits"),
        None => method.to_owned(),
    }))
}

/// Endings of the keys that quantised weights come with.
const QUANTISED_KEYS: &[&str] =
    &[".qweight", ".qzeros", ".SCB", ".absmax", ".quant_map", ".weight_scale", ".weight_packed"];

/// Refuses weights that are packed, whether the configuration says so (`method`) or only the keys do.
///
/// # Errors
/// [`ImportError::Config`] names the method, a tensor of that kind, and what to take instead.
pub(super) fn refuse_quantised(
    dir: &Path,
    method: Option<&str>,
    weights: &dyn WeightSource,
) -> Result<(), ImportError> {
    let packed = |info: &&TensorInfo| {
        QUANTISED_KEYS.iter().any(|end| info.key.ends_with(end))
            || (method.is_some() && info.key.ends_with(".weight") && is_integer(&info.dtype))
    };
    let Some(info) = weights.tensors().values().find(packed) else { return Ok(()) };
    let advice = match method.unwrap_or_default() {
        method if method.starts_with("bitsandbytes") => {
            "take the checkpoint it was made from, or unpack it once in Python: from_pretrained(DIR).dequantize(), then \
             save_pretrained"
        }
        _ => "take the checkpoint it was made from; its model card names it",
    };
    Err(ImportError::Config {
        path: dir.join("config.json"),
        field: "quantization_config".into(),
        value: method.unwrap_or("absent").to_owned(),
        problem: format!(
            "the weights are quantised (`{}` is {} {:?}), and such are not read; {advice}",
            info.key, info.dtype, info.shape
        ),
    })
}

fn is_integer(dtype: &str) -> bool {
    matches!(dtype, "U8" | "I8" | "I16" | "I32" | "Byte" | "Char" | "Short" | "Int")
        || dtype.starts_with("F8")
}
