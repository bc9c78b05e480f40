//! A file that any thread reads at any offset.

use std::fs::File;
use std::io;
use std::path::Path;

/// A file that any thread reads at any offset.
#[derive(Debug)]
pub(super) struct RecordFile {
    #[cfg(unix)]
    file: File,
    #[cfg(not(unix))]
    file: std::sync::Mutex<File>,
}

impl RecordFile {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        #[cfg(not(unix))]
        let file = std::sync::Mutex::new(file);
        Ok(Self { file })
    }

    /// Bytes `offset..offset + length`.
    #[cfg(unix)]
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        use std::os::unix::fs::FileExt;
        let mut bytes = vec![0; length];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    /// Bytes `offset..offset + length`.
    #[cfg(not(unix))]
    pub fn read(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = vec![0; length];
        file.read_exact(&mut bytes)?;
        Ok(bytes)
    }
}
