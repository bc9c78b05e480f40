//! Image files, each decoded once however many records show it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::load::load_image;
use super::loading::ImageLoading;
use crate::error::ImageError;

/// Width and height in pixels, or why there are none.
pub type Decoded = Result<(u32, u32), Arc<ImageError>>;

/// Image files that were decoded, to see whether they can be.
#[derive(Debug, Default)]
pub struct DecodedImages {
    files: Mutex<HashMap<PathBuf, Arc<OnceLock<Decoded>>>>,
}

impl DecodedImages {
    /// Decodes an image file, unless that was done before.
    pub fn file(&self, path: &Path, loading: &ImageLoading) -> Decoded {
        let slot = {
            let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
            match files.get(path) {
                Some(slot) => slot.clone(),
                None => files.entry(path.to_owned()).or_default().clone(),
            }
        };
        let decode = || {
            let image = load_image(path, loading).map_err(Arc::new)?;
            Ok(image.pixels.dimensions())
        };
        slot.get_or_init(decode).clone()
    }

    /// Number of files, and the longer sides of those that can be decoded.
    pub fn finish(self) -> (usize, Vec<usize>) {
        let files = self.files.into_inner().unwrap_or_else(PoisonError::into_inner);
        let sides = files.values().filter_map(|slot| match slot.get() {
            Some(Ok((width, height))) => Some(*width.max(height) as usize),
            _ => None,
        });
        (files.len(), sides.collect())
    }
}
