//! Image files: what may be opened, and how it is named in messages.

use std::fs::{File, FileType};
use std::io::Read;
use std::path::Path;

use super::loading::ImageLoading;
use crate::error::ImageError;

/// A path as messages show it: whatever would move the cursor or change the direction of writing is escaped.
pub fn printable(path: &Path) -> String {
    let hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    path.to_string_lossy().chars().fold(String::new(), |mut text, c| {
        match hidden(c) {
            true => text.extend(c.escape_default()),
            false => text.push(c),
        }
        text
    })
}

/// Looks at a file without opening it: it must be there, be an ordinary file, and not be too large.
///
/// # Errors
/// [`ImageError`] of what is wrong, with the file's name.
pub fn check_image_file(path: &Path, loading: &ImageLoading) -> Result<(), ImageError> {
    let name = || printable(path);
    let metadata =
        std::fs::metadata(path).map_err(|source| ImageError::Read { name: name(), source })?;
    if !metadata.is_file() {
        return Err(ImageError::NotAFile { name: name(), kind: kind(metadata.file_type()) });
    }
    match metadata.len() {
        0 => Err(ImageError::EmptyFile { name: name() }),
        bytes if bytes > loading.max_bytes => {
            Err(ImageError::TooManyBytes { name: name(), bytes, max_bytes: loading.max_bytes })
        }
        _ => Ok(()),
    }
}

/// Reads a file that [`check_image_file`] finds nothing wrong with.
///
/// # Errors
/// As there, or what the system says.
pub fn read_image_file(path: &Path, loading: &ImageLoading) -> Result<Vec<u8>, ImageError> {
    check_image_file(path, loading)?;
    let failed = |source| ImageError::Read { name: printable(path), source };
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    // It may have grown since.
    file.take(loading.max_bytes).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}

fn kind(of: FileType) -> &'static str {
    if of.is_dir() {
        return "a directory";
    }
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if of.is_fifo() {
            return "a named pipe";
        }
        if of.is_socket() {
            return "a socket";
        }
        if of.is_char_device() || of.is_block_device() {
            return "a device";
        }
    }
    "no ordinary file"
}
