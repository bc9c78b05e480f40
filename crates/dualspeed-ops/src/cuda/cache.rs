//! What was compiled and measured before, on disk.

use std::fs;
use std::path::{Path, PathBuf};

use dualspeed_core::files;
use dualspeed_core::hash::hex;
use sha2::{Digest, Sha256};

/// 32 hexadecimal digits of what the parts say together.
pub(super) fn digest(parts: &[&str]) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part.as_bytes());
    }
    hex(&hash.finalize()[..16])
}

/// A cache that cannot be written costs time only. Renamed into place, so that no reader sees half a file.
pub(super) fn write_cache(file: &Path, bytes: &[u8]) {
    let unique = format!("{}-{:?}.tmp", std::process::id(), std::thread::current().id());
    let temporary = file.with_extension(unique);
    let _ = files::write_whole_at(file, &temporary, |partial| fs::write(partial, bytes));
}

/// A file in `$DUALSPEED_CACHE`, else in `dualspeed` in the user's cache folder.
pub(super) fn cache_file(name: &str) -> Option<PathBuf> {
    let folder = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    folder("DUALSPEED_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|dir| dir.join("dualspeed")))
        .or_else(|| folder("HOME").map(|dir| dir.join(".cache").join("dualspeed")))
        .map(|dir| dir.join("kernels").join(name))
}
