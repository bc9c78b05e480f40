//! RGB pixels to what a vision tower takes.

use std::path::Path;

use image::RgbImage;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::host_image::HostImage;
use super::load::{decode_image, load_image};
use super::loading::ImageLoading;
use super::resample::Filter;
use super::resize::{resize_cropped, resize_padded, resize_rgb};
use crate::error::{ImageError, ImageProcessorError};

/// How a rectangle becomes a square.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FitMode {
    /// Stretched.
    Resize,
    /// Padded to a square with the mean colour, then resized (LLaVA-1.5's `image_aspect_ratio = "pad"`).
    #[default]
    Pad,
    /// The shorter side resized, then the centre cut out (CLIP's own preprocessing).
    CentreCrop,
}

/// Fits, resizes (antialiased bicubic) and normalises images.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageProcessor {
    /// Side of the result, in pixels.
    pub size: usize,
    /// How a rectangle becomes a square.
    pub fit: FitMode,
    /// Mean of red, green and blue, on a scale of 0 to 1.
    pub mean: [f32; 3],
    /// Standard deviation of red, green and blue, on a scale of 0 to 1.
    pub std: [f32; 3],
    /// How files become pixels, before all else.
    pub loading: ImageLoading,
}

impl Default for ImageProcessor {
    /// Makes the processor of CLIP ViT-L/14-336 with images padded as in LLaVA-1.5.
    fn default() -> Self {
        Self::clip(336, FitMode::Pad)
    }
}

/// CLIP's mean and standard deviation of red, green and blue.
const CLIP: [[f32; 3]; 2] =
    [[0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]];

/// Largest side of a result, in pixels.
const MAX_SIZE: usize = 16_384;

impl ImageProcessor {
    /// Makes a processor of plain numbers: the side of its results in pixels, how rectangles become squares, and mean and
    /// standard deviation of the three channels on a scale of 0 to 1 (`None`: CLIP's).
    pub fn new(size: usize, fit: FitMode, normalisation: Option<[[f32; 3]; 2]>) -> Self {
        let [mean, std] = normalisation.unwrap_or(CLIP);
        Self { size, fit, mean, std, loading: ImageLoading::default() }
    }

    /// Makes a processor with CLIP's normalisation.
    pub fn clip(size: usize, fit: FitMode) -> Self {
        Self::new(size, fit, None)
    }

    /// Checks the values.
    ///
    /// # Errors
    /// [`ImageProcessorError::OutOfRange`] if the size is 0 or a standard deviation is not positive.
    pub fn validate(&self) -> Result<(), ImageProcessorError> {
        let refuse = |field, value, expected| {
            Err(ImageProcessorError::OutOfRange { field, value, expected })
        };
        if self.size == 0 || self.size > MAX_SIZE {
            let expected = format!("1 to {MAX_SIZE} pixels");
            return refuse("size", self.size.to_string(), expected);
        }
        if !self.std.iter().all(|&std| std > 0.0 && std.is_finite()) {
            return refuse("std", format!("{:?}", self.std), "three positive numbers".into());
        }
        Ok(())
    }

    /// Fits and resizes an image to `size` x `size`, 8-bit: what a person would look at.
    pub fn fit(&self, image: &RgbImage) -> RgbImage {
        let size = self.size as u32;
        let (width, height) = image.dimensions();
        match self.fit {
            _ if (width, height) == (size, size) => image.clone(),
            FitMode::Resize => resize_rgb(image, size, size, Filter::Bicubic),
            FitMode::Pad => {
                let side = width.max(height);
                // Truncated, as `tuple(int(x * 255) for x in image_mean)` does.
                let colour = self.mean.map(|mean| (mean * 255.0) as u8);
                resize_padded(image, (side, side), colour, (size, size), Filter::Bicubic)
            }
            FitMode::CentreCrop => {
                let shorter = u64::from(width.min(height).max(1));
                let scaled =
                    |side: u32| (u64::from(side) * u64::from(size) / shorter).max(1) as u32;
                let to = (scaled(width).max(size), scaled(height).max(size));
                resize_cropped(image, to, size, Filter::Bicubic)
            }
        }
    }

    /// Fits, resizes and normalises an image to `[3, size, size]`.
    pub fn process(&self, image: &RgbImage) -> HostImage {
        let fitted = self.fit(image);
        let area = self.size * self.size;
        let mut pixels = vec![0.0; 3 * area];
        for (channel, plane) in pixels.chunks_exact_mut(area.max(1)).enumerate() {
            let (mean, std) = (self.mean[channel], self.std[channel]);
            let table: [f32; 256] = std::array::from_fn(|v| (v as f32 / 255.0 - mean) / std);
            for (to, from) in plane.iter_mut().zip(fitted.pixels()) {
                *to = table[usize::from(from.0[channel])];
            }
        }
        HostImage { key: self.key(&fitted), size: self.size, pixels }
    }

    fn key(&self, fitted: &RgbImage) -> u64 {
        let mut hash = Sha256::new();
        for value in self.mean.iter().chain(&self.std) {
            hash.update(value.to_le_bytes());
        }
        hash.update((self.size as u64).to_le_bytes());
        hash.update(fitted.as_raw());
        let digest = hash.finalize();
        digest[..8].iter().fold(0, |key, &byte| (key << 8) | u64::from(byte))
    }
}

/// Loads and processes an image file.
///
/// # Errors
/// If the file is missing, empty, truncated, too large, of zero size, or of an unknown or broken format.
pub fn preprocess_image(
    path: impl AsRef<Path>,
    processor: &ImageProcessor,
) -> Result<HostImage, ImageError> {
    Ok(processor.process(&load_image(path, &processor.loading)?.pixels))
}

/// Decodes and processes an image; `name` is what errors call it.
///
/// # Errors
/// If the bytes are none, truncated, too large an image, of zero size, or of an unknown or broken format.
pub fn preprocess_bytes(
    bytes: &[u8],
    name: &str,
    processor: &ImageProcessor,
) -> Result<HostImage, ImageError> {
    Ok(processor.process(&decode_image(bytes, name, &processor.loading)?.pixels))
}
