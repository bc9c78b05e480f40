//! Hashes of files' contents, remembered for large ones.
//!
//! A file of 64 MiB or more is read once: its hash is kept under the cache folder, with the path, size, inode and both times of
//! the file it was made of, and holds as long as none of them changes. Smaller ones are read each time. A file that was written
//! less than two seconds ago is not remembered: it could be written again within the resolution of its times.

use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use dualspeed_core::files;
use dualspeed_core::hash::hex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::features::cache_dir;

/// Files of fewer bytes are read each time.
const LARGE: u64 = 64 << 20;
/// Younger files are not remembered.
const SETTLED: Duration = Duration::from_secs(2);

/// What is remembered of a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Remembered {
    file: Identity,
    sha256: String,
}

/// What changes when a file does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    path: PathBuf,
    size: u64,
    device: u64,
    inode: u64,
    /// Of the content, in nanoseconds since 1970.
    modified: i128,
    /// Of the content or its description, in nanoseconds since 1970.
    changed: i128,
}

/// The SHA-256 of a file's content, in hexadecimal digits; of a large file that has not changed since, without reading it.
///
/// # Errors
/// What the file system says.
pub fn file_sha256(path: &Path) -> io::Result<String> {
    let memory = cache_dir().map(|dir| dir.join("hashes"));
    file_sha256_in(path, memory.as_deref(), LARGE)
}

fn file_sha256_in(path: &Path, memory: Option<&Path>, large: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let place = match memory {
        Some(memory) if metadata.len() >= large => Some((memory, Identity::of(path, &metadata)?)),
        _ => None,
    };
    if let Some((memory, identity)) = &place
        && let Some(known) = recall(memory, identity)
    {
        return Ok(known);
    }
    let sha256 = read_sha256(&mut file)?;
    if let Some((memory, identity)) = place {
        // Unchanged while it was read, and long enough ago.
        let same = Identity::of(path, &fs::metadata(path)?)? == identity;
        if same && settled(&metadata) {
            remember(memory, Remembered { file: identity, sha256: sha256.clone() });
        }
    }
    Ok(sha256)
}

fn read_sha256(file: &mut File) -> io::Result<String> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

impl Identity {
    #[cfg(unix)]
    fn of(path: &Path, metadata: &Metadata) -> io::Result<Self> {
        use std::os::unix::fs::MetadataExt;
        let nanoseconds =
            |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
        Ok(Self {
            path: fs::canonicalize(path)?,
            size: metadata.len(),
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            changed: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    #[cfg(not(unix))]
    fn of(path: &Path, metadata: &Metadata) -> io::Result<Self> {
        let since = metadata.modified()?.duration_since(SystemTime::UNIX_EPOCH);
        let modified = since.map_or(0, |since| since.as_nanos() as i128);
        let (path, size) = (fs::canonicalize(path)?, metadata.len());
        Ok(Self { path, size, device: 0, inode: 0, modified, changed: 0 })
    }
}

fn settled(metadata: &Metadata) -> bool {
    let age = metadata.modified().map(|modified| SystemTime::now().duration_since(modified));
    // A time in the future is of no use.
    age.is_ok_and(|age| age.is_ok_and(|age| age >= SETTLED))
}

/// The file in which the hash of a path is remembered.
fn place(memory: &Path, path: &Path) -> PathBuf {
    let name = hex(&Sha256::digest(path.as_os_str().as_encoded_bytes())[..16]);
    memory.join(format!("{name}.json"))
}

fn recall(memory: &Path, identity: &Identity) -> Option<String> {
    let bytes = fs::read(place(memory, &identity.path)).ok()?;
    let Remembered { file, sha256 } = serde_json::from_slice(&bytes).ok()?;
    (file == *identity).then_some(sha256)
}

/// What cannot be remembered is computed again.
fn remember(memory: &Path, entry: Remembered) {
    let path = place(memory, &entry.file.path);
    // Two processes may remember the same file at once.
    let own = path.with_extension(format!("{}.partial", std::process::id()));
    let written = serde_json::to_vec(&entry)
        .map_err(io::Error::from)
        .and_then(|bytes| files::write_whole_at(&path, &own, |partial| fs::write(partial, &bytes)));
    if let Err(error) = written {
        tracing::debug!("the hash of {} is not remembered: {error}", entry.file.path.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(path: &Path, seconds: u64) {
        let time = SystemTime::now() - Duration::from_secs(seconds);
        File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn large_files_are_remembered_until_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let (path, memory) = (dir.path().join("weights"), dir.path().join("memory"));
        let hash = || file_sha256_in(&path, Some(&memory), 4).unwrap();
        let entries = || fs::read_dir(&memory).map_or(0, |entries| entries.count());
        fs::write(&path, "abc").unwrap();
        let small = hash();
        assert_eq!(small, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        fs::write(&path, "large").unwrap();
        hash();
        assert_eq!(entries(), 0, "small, and new");
        age(&path, 60);
        let large = hash();
        assert_eq!(entries(), 1);

        // It is the memory that answers: another answer is put into it.
        let kept = place(&memory, &fs::canonicalize(&path).unwrap());
        let text = fs::read_to_string(&kept).unwrap();
        fs::write(&kept, text.replace(&large, "remembered")).unwrap();
        assert_eq!(hash(), "remembered");
        // The same size, and a time from before.
        fs::write(&path, "LARGE").unwrap();
        age(&path, 60);
        assert_ne!(hash(), "remembered");
        assert_ne!(hash(), large);
        // Without a folder, and with one that cannot be written.
        assert_eq!(file_sha256_in(&path, None, 4).unwrap(), hash());
        assert_eq!(file_sha256_in(&path, Some(&path.join("x")), 4).unwrap(), hash());
    }
}
