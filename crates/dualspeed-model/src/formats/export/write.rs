//! Safetensors in shards, with their index, each file there whole or not at all.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use dualspeed_core::files;
use serde_json::{Value, json};

use super::collect::Pending;
use crate::error::ModelError;
use crate::formats::import::safetensors::{INDEX, SINGLE};

pub(super) fn failed(path: &Path, error: impl ToString) -> ModelError {
    ModelError::Weights { what: path.display().to_string(), message: error.to_string() }
}

/// Makes a directory and those above it.
pub(super) fn make_dir(dir: &Path) -> Result<(), ModelError> {
    std::fs::create_dir_all(dir).map_err(|error| failed(dir, error))
}

/// Writes JSON, indented.
pub(super) fn write_json(path: &Path, value: &Value) -> Result<(), ModelError> {
    let text = serde_json::to_vec_pretty(value).map_err(|error| failed(path, error))?;
    files::write_atomic(path, &text).map_err(|error| failed(path, error))
}

/// Writes one safetensors file.
pub(super) fn write_file(
    path: &Path,
    tensors: &BTreeMap<String, Pending<'_>>,
) -> Result<(), ModelError> {
    write_some(path, tensors.iter())
}

fn write_some<'a>(
    path: &Path,
    tensors: impl Iterator<Item = (&'a String, &'a Pending<'a>)>,
) -> Result<(), ModelError> {
    // transformers refuses files without this.
    let metadata = Some([("format".to_owned(), "pt".to_owned())].into());
    files::write_whole(path, |partial| {
        safetensors::serialize_to_file(tensors, metadata, partial).map_err(io::Error::other)
    })
    .map_err(|error| failed(path, error))
}

/// Writes `model.safetensors`, or shards of about `shard` bytes with their index.
pub(super) fn write_shards(
    dir: &Path,
    tensors: &BTreeMap<String, Pending<'_>>,
    shard: usize,
) -> Result<(), ModelError> {
    let mut shards: Vec<Vec<&String>> = vec![Vec::new()];
    let (mut filled, mut total) = (0, 0);
    for (key, tensor) in tensors {
        if filled > 0 && filled + tensor.bytes() > shard {
            shards.push(Vec::new());
            filled = 0;
        }
        filled += tensor.bytes();
        total += tensor.bytes();
        if let Some(last) = shards.last_mut() {
            last.push(key);
        }
    }
    if shards.len() == 1 {
        return write_file(&dir.join(SINGLE), tensors);
    }
    let mut weight_map = serde_json::Map::new();
    for (index, keys) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        let chosen = keys.iter().filter_map(|key| Some((*key, tensors.get(*key)?)));
        write_some(&dir.join(&name), chosen)?;
        weight_map.extend(keys.iter().map(|key| ((*key).clone(), json!(name))));
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    write_json(&dir.join(INDEX), &index)
}
