//! Sizes of images, and the tiles they will be cut into, without decoding them.

use std::io::Cursor;

use image::ImageReader;

use super::load::{ImageLimits, decode_image};
use super::tiles::TileConfig;
use super::tiling::{Size, Tiling};
use crate::error::ImageError;

/// Width and height of an image; `name` is what errors call it.
///
/// # Errors
/// As [`decode_image`], as far as the header tells.
pub fn image_size(
    bytes: &[u8],
    name: &str,
    limits: &ImageLimits,
) -> Result<(u32, u32), ImageError> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format();
    match reader.ok().and_then(|reader| reader.into_dimensions().ok()) {
        Some(size) => Ok(size),
        // What is wrong with it, the decoder says best.
        None => decode_image(bytes, name, limits).map(|image| image.pixels.dimensions()),
    }
}

impl TileConfig {
    /// Chooses the grid of an image of `[height, width]` pixels, of tiles of `tile` pixels a side.
    ///
    /// # Errors
    /// [`ImageError::NoGrid`] if no resolution is a grid of whole tiles.
    pub fn tiling(&self, size: Size, tile: usize) -> Result<Tiling, ImageError> {
        Tiling::new(size, &self.pinpoints, tile, self.side)
            .ok_or_else(|| ImageError::NoGrid { pinpoints: self.pinpoints.clone(), tile })
    }
}
