//! An image as tiles: the whole of it, and a grid of full resolution (LLaVA-NeXT's anyres).

use std::sync::Arc;

use image::{Rgb, RgbImage, imageops};

use super::host_image::HostImage;
use super::processor::{FitMode, ImageProcessor};
use super::resample::Filter;
use super::resize::resize_rgb;
use super::tiling::{Tiling, fitted_size};
use crate::error::ImageError;

/// Tiles that images of any resolution are cut into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TileConfig {
    /// Resolutions a grid can have, `[height, width]` in pixels.
    pub pinpoints: Vec<[usize; 2]>,
    /// Patches along a side of a tile.
    pub side: usize,
}

/// The tiles of one image and how they lie.
#[derive(Clone, Debug, PartialEq)]
pub struct TiledImage {
    /// The whole image, then the grid row by row.
    pub tiles: Vec<Arc<HostImage>>,
    /// How they lie.
    pub tiling: Tiling,
}

impl ImageProcessor {
    /// Cuts an image into tiles of this processor's size with `side` patches a side. The whole image is stretched to a
    /// square, the grid keeps the aspect ratio on black.
    ///
    /// # Errors
    /// [`ImageError::NoGrid`] if no resolution is a grid of whole tiles.
    ///
    /// Source: `LlavaNextImageProcessor` of transformers.
    pub fn process_tiles(
        &self,
        image: &RgbImage,
        config: &TileConfig,
    ) -> Result<TiledImage, ImageError> {
        let TileConfig { pinpoints, side } = config;
        let size = [image.height() as usize, image.width() as usize];
        let tiling = Tiling::new(size, pinpoints, self.size, *side)
            .ok_or_else(|| ImageError::NoGrid { pinpoints: pinpoints.clone(), tile: self.size })?;
        let canvas = tiling.grid.map(|tiles| tiles * self.size);
        let [fitted_height, fitted_width] = fitted_size(size, canvas).map(|side| side as u32);
        let [canvas_height, canvas_width] = canvas.map(|side| side as u32);
        let fitted = resize_rgb(image, fitted_width, fitted_height, Filter::Bicubic);
        let mut canvas = RgbImage::from_pixel(canvas_width, canvas_height, Rgb([0; 3]));
        let left = i64::from((canvas_width - fitted_width) / 2);
        let top = i64::from((canvas_height - fitted_height) / 2);
        imageops::replace(&mut canvas, &fitted, left, top);
        let whole = ImageProcessor { fit: FitMode::Resize, ..self.clone() };
        let mut tiles = vec![Arc::new(whole.process(image))];
        let size = self.size as u32;
        for row in 0..tiling.grid[0] as u32 {
            for column in 0..tiling.grid[1] as u32 {
                let tile = imageops::crop_imm(&canvas, column * size, row * size, size, size);
                tiles.push(Arc::new(whole.process(&tile.to_image())));
            }
        }
        Ok(TiledImage { tiles, tiling })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_show_their_part_on_black() {
        // Left half red, right half blue, twice as wide as high: a grid of 1 x 2, no canvas to be seen.
        let image =
            RgbImage::from_fn(
                80,
                40,
                |x, _| if x < 40 { Rgb([255, 0, 0]) } else { Rgb([0, 0, 255]) },
            );
        let plain = ImageProcessor {
            mean: [0.0; 3],
            std: [1.0; 3],
            ..ImageProcessor::clip(28, FitMode::Pad)
        };
        let config = TileConfig { pinpoints: vec![[28, 56], [56, 28]], side: 4 };
        let tiled = plain.process_tiles(&image, &config).unwrap();
        assert_eq!((tiled.tiles.len(), tiled.tiling.grid), (3, [1, 2]));
        let red = |tile: usize, at: usize| tiled.tiles[tile].pixels[at];
        assert_eq!((red(1, 0), red(2, 27)), (1.0, 0.0));
        assert_eq!((red(0, 0), red(0, 27)), (1.0, 0.0));
        // Higher than wide: black on both sides.
        let narrow = RgbImage::from_pixel(10, 40, Rgb([255; 3]));
        let tiled = plain.process_tiles(&narrow, &config).unwrap();
        assert_eq!(tiled.tiling.grid, [2, 1]);
        let middle = 14 * 28;
        assert_eq!((tiled.tiles[1].pixels[middle], tiled.tiles[1].pixels[middle + 14]), (0.0, 1.0));
        assert_eq!((tiled.tiling.columns.len(), tiled.tiling.rows.len()), (2, 8));
        let odd = TileConfig { pinpoints: vec![[28, 30]], side: 4 };
        let error = plain.process_tiles(&narrow, &odd).unwrap_err().to_string();
        assert!(error.contains("[[28, 30]]") && error.contains("28 pixels"), "{error}");
    }
}
