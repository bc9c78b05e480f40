//! Files of results that are there whole or not at all.

use std::path::Path;

use anyhow::Context;
use serde::Serialize;

/// Writes a JSON file so that it is there whole or not at all; its directory is made.
///
/// # Errors
/// If the directory cannot be made or written, or the disk is full.
pub fn write_json(path: &Path, value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    write_atomic(path, text.as_bytes())
}

/// Writes a file so that it is there whole or not at all; its directory is made.
///
/// # Errors
/// If the directory cannot be made or written, or the disk is full.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    dualspeed_core::files::write_atomic(path, bytes)
        .with_context(|| format!("cannot write {}: is the disk full?", path.display()))
}
