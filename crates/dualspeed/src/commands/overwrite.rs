//! What exists is not replaced without `--overwrite`.

use std::path::Path;

/// Refuses to replace a file that exists, unless `overwrite`.
pub(super) fn refuse_existing(path: &Path, overwrite: bool) -> anyhow::Result<()> {
    anyhow::ensure!(
        overwrite || !path.exists(),
        "{} exists; give another --out, or --overwrite to replace it",
        path.display()
    );
    Ok(())
}
