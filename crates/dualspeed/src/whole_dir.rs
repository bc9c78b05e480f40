//! Directories that are there whole or not at all: a model that is exported over an earlier one.
//!
//! A new directory is written beside its place and then takes it, in one operation of the file system where that has one
//! (Linux, macOS): whoever looks, and whatever ends the program, finds the old one or the new one. What the program made is
//! listed in the directory; only that is replaced, and whatever else is in it is kept.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use dualspeed_core::files::{sync_dir, write_synced};
use serde::{Deserialize, Serialize};

/// The list of what the program made.
pub const MANIFEST: &str = ".dualspeed-files.json";

/// Held while a directory is written.
const LOCK: &str = ".lock";

/// What is younger than that may be another process's.
const FRESH: Duration = Duration::from_secs(60);

#[derive(Debug, Default, Serialize, Deserialize)]
struct Manifest {
    /// Paths in the directory, with `/`.
    files: Vec<String>,
}

/// A directory that is being written beside its place. Dropped before it has taken it, it is removed.
#[derive(Debug)]
pub struct WholeDir {
    target: PathBuf,
    partial: PathBuf,
    /// Files in the place that others made.
    foreign: Vec<PathBuf>,
    _lock: File,
}

impl WholeDir {
    /// Begins a directory that will take the place `target`.
    ///
    /// # Errors
    /// If there is something already and `overwrite` is not set, or if what is there was not made by this program, or nothing
    /// can be written beside it.
    pub fn begin(target: &Path, overwrite: bool) -> anyhow::Result<Self> {
        let shown = target.display();
        // Where a link leads: the link stays.
        let target = match fs::canonicalize(target) {
            Ok(target) => target,
            Err(_) => target.to_owned(),
        };
        anyhow::ensure!(
            target.is_dir() || fs::symlink_metadata(&target).is_err(),
            "{shown} is no directory; give another --out"
        );
        let there = list(&target).with_context(|| format!("cannot list {shown}"))?;
        anyhow::ensure!(
            overwrite || there.is_empty(),
            "{shown} exists and is not empty; give another --out, or --overwrite to replace what an earlier export wrote there"
        );
        let foreign = match read_manifest(&target)? {
            Some(manifest) => {
                let ours = |path: &Path| manifest.files.contains(&slashed(path));
                there
                    .into_iter()
                    .filter(|path| !ours(path) && path != Path::new(MANIFEST))
                    .collect()
            }
            None if there.is_empty() => there,
            None => anyhow::bail!(
                "{shown} was not written by `dualspeed export` or `assemble` (it has no {MANIFEST}), so --overwrite leaves it \
                 alone; give another --out, or remove it yourself"
            ),
        };
        let name = target.file_name().with_context(|| format!("{shown} has no name"))?;
        let parent = match target.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        fs::create_dir_all(&parent)
            .with_context(|| format!("cannot create {}", parent.display()))?;
        let prefix = format!(".{}.partial-", name.to_string_lossy());
        remove_stale(&parent, &prefix);
        let partial = parent.join(format!("{prefix}{}", std::process::id()));
        let beside = || {
            format!(
                "cannot write beside {shown}, where a new directory is made before it takes that place; choose an --out \
                 inside a directory that you may write"
            )
        };
        // Left by a process of the same number.
        let _ = fs::remove_dir_all(&partial);
        fs::create_dir(&partial).with_context(beside)?;
        let lock = File::create(partial.join(LOCK)).with_context(beside)?;
        // Where files cannot be locked, nothing is taken for stale either.
        let _ = lock.try_lock();
        Ok(Self { target, partial, foreign, _lock: lock })
    }

    /// The directory to write into.
    pub fn path(&self) -> &Path {
        &self.partial
    }

    /// Puts the directory in its place, with what others had put there.
    ///
    /// # Errors
    /// If the file system refuses, or if a file of others would be replaced. What was there is then still there.
    pub fn put_in_place(self) -> anyhow::Result<()> {
        let shown = self.target.display();
        fs::remove_file(self.partial.join(LOCK))
            .with_context(|| format!("cannot finish {shown}"))?;
        let files = list(&self.partial).with_context(|| format!("cannot list {shown}"))?;
        for path in &self.foreign {
            anyhow::ensure!(
                !files.contains(path),
                "{} was not written by this program and would be replaced; move it, or give another --out",
                self.target.join(path).display()
            );
            carry(&self.target.join(path), &self.partial.join(path))
                .with_context(|| format!("cannot keep {}", self.target.join(path).display()))?;
        }
        let manifest = Manifest { files: files.iter().map(|path| slashed(path)).collect() };
        let text = serde_json::to_vec_pretty(&manifest)?;
        write_synced(&self.partial.join(MANIFEST), &text)
            .and_then(|()| sync_dir(&self.partial))
            .with_context(|| format!("cannot write {shown}: is the disk full?"))?;
        take_place(&self.partial, &self.target)
            .with_context(|| format!("cannot put the finished directory in the place {shown}"))?;
        let parent = self.partial.parent().unwrap_or(Path::new("."));
        sync_dir(parent).with_context(|| format!("cannot sync {}", parent.display()))
        // The old directory now has the name of the partial one, and is removed with it.
    }
}

impl Drop for WholeDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.partial)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {error}", self.partial.display());
        }
    }
}

/// Gives `partial` the name `target`; what had it has the name `partial` then.
fn take_place(partial: &Path, target: &Path) -> io::Result<()> {
    if fs::symlink_metadata(target).is_err() {
        return fs::rename(partial, target);
    }
    #[cfg(any(target_os = "linux", target_vendor = "apple"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        use rustix::io::Errno;
        match renameat_with(CWD, partial, CWD, target, RenameFlags::EXCHANGE) {
            Ok(()) => return Ok(()),
            // A file system that has no such operation.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let mut aside = partial.as_os_str().to_owned();
    aside.push(".old");
    let aside = PathBuf::from(aside);
    fs::rename(target, &aside)?;
    if let Err(error) = fs::rename(partial, target) {
        fs::rename(&aside, target)?;
        return Err(error);
    }
    fs::rename(&aside, partial)
}

/// Makes `from` appear at `to` too.
fn carry(from: &Path, to: &Path) -> io::Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    #[cfg(unix)]
    if from.is_symlink() {
        return std::os::unix::fs::symlink(fs::read_link(from)?, to);
    }
    fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop))
}

/// Removes what processes that were killed have left; what cannot be is left again.
fn remove_stale(parent: &Path, prefix: &str) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let path = entry.path();
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        let age = modified.ok().and_then(|time| time.elapsed().ok()).unwrap_or_default();
        let is_free = match File::open(path.join(LOCK)) {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(_) => age > FRESH,
        };
        if is_free {
            tracing::debug!("removing {}, which a process that has ended left", path.display());
            let _ = fs::remove_dir_all(&path);
        }
    }
}

fn read_manifest(dir: &Path) -> anyhow::Result<Option<Manifest>> {
    let path = dir.join(MANIFEST);
    match fs::read(&path) {
        Ok(text) => {
            let manifest = serde_json::from_slice(&text);
            Ok(Some(manifest.with_context(|| format!("cannot read {}", path.display()))?))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// All files below a directory, relative to it, in order; none if it is not there.
fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(inside) = open.pop() {
        let entries = match fs::read_dir(dir.join(&inside)) {
            Ok(entries) => entries,
            Err(error)
                if inside.as_os_str().is_empty() && error.kind() == io::ErrorKind::NotFound =>
            {
                return Ok(found);
            }
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let path = inside.join(entry.file_name());
            // Links are entries like any other, also those to directories.
            match entry.file_type()?.is_dir() {
                true => open.push(path),
                false => found.push(path),
            }
        }
    }
    found.sort();
    Ok(found)
}

fn slashed(path: &Path) -> String {
    let parts: Vec<_> = path.iter().map(|part| part.to_string_lossy()).collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &WholeDir, names: &[&str]) {
        for name in names {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "new").unwrap();
        }
    }

    fn names(dir: &Path) -> Vec<String> {
        list(dir).unwrap().iter().map(|path| slashed(path)).collect()
    }

    #[test]
    fn a_directory_takes_its_place_whole() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("a/model");
        let dir = WholeDir::begin(&target, false).unwrap();
        write(&dir, &["model-1.bin", "model-2.bin", "index.json", "tower/config.json"]);
        assert!(!target.exists());
        dir.put_in_place().unwrap();
        let refused = WholeDir::begin(&target, false).unwrap_err().to_string();
        assert!(refused.contains("--overwrite"), "{refused}");
        // What others put there is kept, what was made here is replaced.
        fs::create_dir(target.join("mine")).unwrap();
        fs::write(target.join("mine/notes.txt"), "mine").unwrap();
        let dir = WholeDir::begin(&target, true).unwrap();
        write(&dir, &["model.bin"]);
        dir.put_in_place().unwrap();
        assert_eq!(names(&target), [MANIFEST, "mine/notes.txt", "model.bin"]);
        assert_eq!(fs::read_to_string(target.join("mine/notes.txt")).unwrap(), "mine");
        assert_eq!(names(parent.path()).len(), 3, "nothing is left beside it");
    }

    #[test]
    fn what_is_given_up_or_refused_changes_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        let dir = WholeDir::begin(&target, false).unwrap();
        write(&dir, &["old"]);
        dir.put_in_place().unwrap();
        fs::write(target.join("notes"), "mine").unwrap();
        let before = names(&target);
        drop(WholeDir::begin(&target, true).unwrap());
        let dir = WholeDir::begin(&target, true).unwrap();
        write(&dir, &["notes"]);
        assert!(dir.put_in_place().unwrap_err().to_string().contains("notes"));
        assert_eq!(names(&target), before);
        assert_eq!(fs::read_to_string(target.join("notes")).unwrap(), "mine");
        // Somebody else's directory.
        let theirs = parent.path().join("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("model.safetensors"), "theirs").unwrap();
        let error = WholeDir::begin(&theirs, true).unwrap_err().to_string();
        assert!(error.contains("was not written by"), "{error}");
        assert!(WholeDir::begin(&theirs.join("model.safetensors"), true).is_err());
    }

    #[test]
    fn what_killed_processes_leave_is_removed_and_what_others_write_is_not() {
        let parent = tempfile::tempdir().unwrap();
        let target = parent.path().join("model");
        let stale = parent.path().join(".model.partial-1");
        fs::create_dir(&stale).unwrap();
        fs::write(stale.join(LOCK), "").unwrap();
        let other = parent.path().join(".model.partial-2");
        fs::create_dir(&other).unwrap();
        let lock = File::create(other.join(LOCK)).unwrap();
        lock.lock().unwrap();
        drop(WholeDir::begin(&target, false).unwrap());
        assert!(!stale.exists() && other.exists());
    }
}
