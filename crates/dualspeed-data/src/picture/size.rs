//! Sizes of images, and the tiles they will be cut into, without decoding them.

use std::io::Cursor;

use image::metadata::Orientation;
use image::{ImageDecoder, ImageReader};

use super::load::decode_image;
use super::loading::ImageLoading;
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
    loading: &ImageLoading,
) -> Result<(u32, u32), ImageError> {
    match header(bytes, loading) {
        Some(size) => Ok(size),
        // What is wrong with it, the decoder says best.
        None => decode_image(bytes, name, loading).map(|image| image.pixels.dimensions()),
    }
}

fn header(bytes: &[u8], loading: &ImageLoading) -> Option<(u32, u32)> {
    use Orientation::{Rotate90, Rotate90FlipH, Rotate270, Rotate270FlipH};
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    let mut decoder = reader.into_decoder().ok()?;
    let (width, height) = decoder.dimensions();
    let turned = match loading.exif_orientation {
        true => decoder.orientation().ok()?,
        false => Orientation::NoTransforms,
    };
    match turned {
        Rotate90 | Rotate270 | Rotate90FlipH | Rotate270FlipH => Some((height, width)),
        _ => Some((width, height)),
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
