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

/// Refuses to write into a directory that holds anything, unless `overwrite`.
pub(super) fn refuse_occupied(dir: &Path, overwrite: bool) -> anyhow::Result<()> {
    let occupied = dir.is_dir() && std::fs::read_dir(dir)?.next().is_some();
    anyhow::ensure!(
        overwrite || !occupied,
        "{} exists and is not empty; give another --out, or --overwrite to write into it",
        dir.display()
    );
    Ok(())
}
