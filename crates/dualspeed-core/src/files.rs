//! Files that are there whole or not at all, whatever becomes of the process, the disk or the power.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Writes a file so that it is there whole or not at all; see [`write_whole`].
///
/// # Errors
/// What the file system says: the directory cannot be made or written, or the disk is full. What was at `path` is then
/// still there.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_whole(path, |partial| fs::write(partial, bytes))
}

/// Lets `write` make a file under the name `path.partial`, waits until it is on disk, then renames it to `path`. The
/// directory is made if it is not there; when anything fails, the partial file is removed.
///
/// Two processes must not write the same path at one time: [`write_whole_at`] lets each have its own partial file.
///
/// # Errors
/// What `write` returns, or what the file system says. What was at `path` is then still there.
pub fn write_whole<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".partial");
    write_whole_at(path, &path.with_file_name(name), write)
}

/// Lets `write` make the file `partial`, waits until it is on disk, then renames it to `path`, which must be in the same
/// directory. The directory is made if it is not there; when anything fails, `partial` is removed.
///
/// # Errors
/// What `write` returns, or what the file system says. What was at `path` is then still there.
pub fn write_whole_at<E: From<io::Error>>(
    path: &Path,
    partial: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let dir = parent(path);
    fs::create_dir_all(&dir)?;
    let written = write(partial).and_then(|()| {
        sync_file(partial)?;
        fs::rename(partial, path)?;
        Ok(())
    });
    if written.is_err() {
        // Best effort: the write's own error is the one to report.
        let _ = fs::remove_file(partial);
    }
    written?;
    Ok(sync_dir(&dir)?)
}

/// Writes a file in place and waits until it is on disk: for files of a directory that is renamed as a whole.
///
/// # Errors
/// What the file system says.
pub fn write_synced(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Waits until what was written to a file is on disk.
///
/// # Errors
/// What the file system says.
pub fn sync_file(path: &Path) -> io::Result<()> {
    OpenOptions::new().write(true).open(path)?.sync_all()
}

/// Makes renames in a directory durable. Does nothing where directories cannot be opened (Windows).
///
/// # Errors
/// What the file system says.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// The directory of a path; `.` for a bare file name.
fn parent(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = fs::read_dir(dir).unwrap();
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn writes_into_directories_that_are_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/file.json");
        write_atomic(&path, b"one").unwrap();
        write_atomic(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(names(path.parent().unwrap()), ["file.json"]);
    }

    #[test]
    fn a_failed_write_leaves_what_was_there_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        write_atomic(&path, b"old").unwrap();
        let failed = write_whole(&path, |partial| {
            fs::write(partial, b"half")?;
            Err(io::Error::other("the disk is full"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "the disk is full");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["file"]);
    }

    #[test]
    fn a_file_in_the_place_of_the_directory_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        write_synced(&file, b"x").unwrap();
        assert!(write_atomic(&file.join("inside"), b"y").is_err());
        assert!(sync_dir(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn errors_of_the_writer_keep_their_type() {
        #[derive(Debug)]
        enum Mine {
            Io,
            Refused,
        }
        impl From<io::Error> for Mine {
            fn from(_: io::Error) -> Self {
                Self::Io
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let partial = dir.path().join(".own-name");
        let refused = write_whole_at(&path, &partial, |_| Err(Mine::Refused));
        assert!(matches!(refused, Err(Mine::Refused)));
        // Nothing was written where it was promised.
        assert!(matches!(write_whole_at(&path, &partial, |_| Ok(())), Err(Mine::Io)));
    }
}
