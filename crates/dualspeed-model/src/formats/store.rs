//! Weights in and out as safetensors: from files, and from bytes built into a program.

use std::path::Path;

use burn::module::Module;
use burn_store::{HalfPrecisionAdapter, ModuleSnapshot, SafetensorsStore};
use dualspeed_core::files;
use dualspeed_ops::Backend;

use crate::error::ModelError;

/// Precision of the numbers on disk; in memory weights are what the module holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// As in memory.
    Full,
    /// 16-bit floats: half the size, three significant digits; for frozen weights.
    Half,
}

/// Every container whose parameters may be stored as 16-bit floats.
fn half() -> HalfPrecisionAdapter {
    ["VitEmbeddings", "PatchEmbedding", "TowerHeads", "Llava", "LoraPair"]
        .into_iter()
        .fold(HalfPrecisionAdapter::new(), HalfPrecisionAdapter::with_module)
}

/// All weights of a module as the bytes of a safetensors file.
///
/// # Errors
/// [`ModelError::Weights`] if they cannot be serialised.
pub fn to_bytes<B: Backend, M: Module<B>>(
    module: &M,
    precision: Precision,
) -> Result<Vec<u8>, ModelError> {
    let mut store = SafetensorsStore::from_bytes(None).skip_enum_variants(true);
    if precision == Precision::Half {
        store = store.with_to_adapter(half());
    }
    let failed = |message: String| ModelError::Weights { what: "in memory".into(), message };
    module.save_into(&mut store).map_err(|error| failed(error.to_string()))?;
    store.get_bytes().map_err(|error| failed(error.to_string()))
}

/// Writes all weights of a module to a safetensors file that is there whole or not at all.
///
/// # Errors
/// [`ModelError::Weights`] names the file and what went wrong; nothing half-written stays.
pub fn save_file<B: Backend, M: Module<B>>(
    module: &M,
    path: &Path,
    precision: Precision,
) -> Result<(), ModelError> {
    let failed = |error: std::io::Error| ModelError::Weights {
        what: path.display().to_string(),
        message: error.to_string(),
    };
    let bytes = to_bytes(module, precision)?;
    files::write_atomic(path, &bytes).map_err(failed)
}

/// Loads every weight of a module from safetensors bytes of either precision.
///
/// # Errors
/// [`ModelError::Weights`] if a tensor is missing, has another shape, or belongs to nothing.
pub fn from_bytes<B: Backend, M: Module<B>>(
    module: M,
    bytes: &[u8],
    what: &str,
) -> Result<M, ModelError> {
    let half_source = safetensors_is_half(bytes);
    let mut store = SafetensorsStore::from_bytes(Some(bytes.to_vec()))
        .skip_enum_variants(true)
        .allow_partial(true);
    if half_source {
        store = store.with_from_adapter(half());
    }
    let failed = |message: String| ModelError::Weights { what: what.to_owned(), message };
    let mut module = module;
    let applied = module.load_from(&mut store).map_err(|error| failed(error.to_string()))?;
    let list = |names: Vec<String>| names.join(", ");
    if !applied.missing.is_empty() {
        let names = applied.missing.into_iter().map(|(path, _)| path).collect();
        return Err(failed(format!("missing: {}", list(names))));
    }
    if !applied.unused.is_empty() {
        return Err(failed(format!("belong to no parameter: {}", list(applied.unused))));
    }
    Ok(module)
}

/// Loads every weight of a module from a safetensors file of either precision.
///
/// # Errors
/// As [`from_bytes`]; also if the file cannot be read.
pub fn load_file<B: Backend, M: Module<B>>(module: M, path: &Path) -> Result<M, ModelError> {
    let what = path.display().to_string();
    let bytes = std::fs::read(path)
        .map_err(|error| ModelError::Weights { what: what.clone(), message: error.to_string() })?;
    from_bytes(module, &bytes, &what)
}

/// Whether a file of ours holds 16-bit floats: its JSON header, after 8 bytes of length, says so.
fn safetensors_is_half(bytes: &[u8]) -> bool {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else { return false };
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(0).min(rest.len());
    String::from_utf8_lossy(&rest[..length]).contains("\"F16\"")
}
