//! Bytes to RGB pixels, with limits checked before anything is decoded.
//!
//! Decisions:
//!  - animations (GIF, WebP, APNG) give their first frame, and [`LoadedImage::animated`] says so;
//!  - transparency is composed over white (LLaVA drops the alpha channel and shows whatever colour lies under it);
//!  - 16-bit, grey, palette and CMYK images become 8-bit RGB;
//!  - EXIF orientation is not applied, as in LLaVA's code;
//!  - a JPEG without its end marker is an error: decoders fill the missing part with grey and say nothing.

use std::io::{Cursor, ErrorKind};
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};
use serde::{Deserialize, Serialize};

use crate::error::ImageError;

/// How large an image may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageLimits {
    /// Largest width or height, in pixels.
    pub max_side: u32,
    /// Largest width x height, in pixels.
    pub max_pixels: u64,
}

impl Default for ImageLimits {
    fn default() -> Self {
        Self { max_side: 16_384, max_pixels: 64 << 20 }
    }
}

/// A decoded image.
#[derive(Clone, Debug)]
pub struct LoadedImage {
    /// 8-bit RGB.
    pub pixels: RgbImage,
    /// Whether the file is an animation, of which this is the first frame.
    pub animated: bool,
}

/// Reads and decodes an image file.
///
/// # Errors
/// If the file is missing, empty, truncated, too large, of zero size, or of an unknown or broken format.
pub fn load_image(path: impl AsRef<Path>, limits: &ImageLimits) -> Result<LoadedImage, ImageError> {
    let name = path.as_ref().display().to_string();
    let bytes =
        std::fs::read(&path).map_err(|source| ImageError::Read { name: name.clone(), source })?;
    decode_image(&bytes, &name, limits)
}

/// Decodes an image; `name` is what errors call it.
///
/// # Errors
/// If the bytes are none, truncated, too large an image, of zero size, or of an unknown or broken format.
pub fn decode_image(
    bytes: &[u8],
    name: &str,
    limits: &ImageLimits,
) -> Result<LoadedImage, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::EmptyFile { name: name.into() });
    }
    let format =
        image::guess_format(bytes).map_err(|_| ImageError::UnknownFormat { name: name.into() })?;
    if format == ImageFormat::Jpeg && !jpeg_is_complete(bytes) {
        return Err(ImageError::Truncated {
            name: name.into(),
            reason: "the end marker is missing".into(),
        });
    }
    if let Some((width, height)) = announced_size(bytes, format) {
        check_size(name, width, height, limits)?;
    }
    let fail = |error| decode_error(name, error);
    let mut decoder =
        ImageReader::with_format(Cursor::new(bytes), format).into_decoder().map_err(fail)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, limits)?;
    decoder.set_limits(allocation(limits)).map_err(fail)?;
    let image = DynamicImage::from_decoder(decoder).map_err(fail)?;
    Ok(LoadedImage { pixels: over_white(image), animated: is_animated(bytes, format, limits) })
}

/// 16 bytes a pixel (RGBA f32) for the result, as much again for the decoder's own buffers.
fn allocation(limits: &ImageLimits) -> image::Limits {
    let mut allocation = image::Limits::default();
    allocation.max_alloc = Some(limits.max_pixels.saturating_mul(32));
    allocation
}

fn check_size(name: &str, width: u32, height: u32, limits: &ImageLimits) -> Result<(), ImageError> {
    let name = name.to_string();
    let ImageLimits { max_side, max_pixels } = *limits;
    if width == 0 || height == 0 {
        return Err(ImageError::ZeroSize { name, width, height });
    }
    if width > max_side || height > max_side || u64::from(width) * u64::from(height) > max_pixels {
        return Err(ImageError::TooLarge { name, width, height, max_side, max_pixels });
    }
    Ok(())
}

/// The size in the header of a PNG or GIF, whose decoders refuse zero sizes with messages about chunks.
fn announced_size(bytes: &[u8], format: ImageFormat) -> Option<(u32, u32)> {
    match format {
        ImageFormat::Png => {
            let word =
                |at: usize| Some(u32::from_be_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
            (bytes.get(12..16)? == b"IHDR").then_some((word(16)?, word(20)?))
        }
        ImageFormat::Gif => {
            let word =
                |at: usize| Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
            Some((word(6)?.into(), word(8)?.into()))
        }
        _ => None,
    }
}

fn decode_error(name: &str, error: image::ImageError) -> ImageError {
    let name = name.to_string();
    // Decoders wrap "ran out of bytes" in errors of their own; the chain of sources tells.
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
    while let Some(current) = cause {
        let ended = current
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == ErrorKind::UnexpectedEof);
        if ended || current.to_string().to_lowercase().contains("unexpected e") {
            return ImageError::Truncated { name, reason: "the data ends early".into() };
        }
        cause = current.source();
    }
    ImageError::Decode { name, reason: error.to_string() }
}

/// Walks the segments up to the first scan, then looks for the end-of-image marker. (Thumbnails with an end marker
/// of their own lie inside segments; within a scan the byte FF is always followed by 00 or a restart marker.)
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(&[0xff, marker]) = bytes.get(at..at + 2) {
        match marker {
            0xff => at += 1,
            0xda => return bytes[at..].windows(2).any(|pair| pair == [0xff, 0xd9]),
            _ => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => at += 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
        }
    }
    false
}

fn is_animated(bytes: &[u8], format: ImageFormat, limits: &ImageLimits) -> bool {
    use image::AnimationDecoder;
    use image::codecs::{gif::GifDecoder, png::PngDecoder, webp::WebPDecoder};
    let cursor = Cursor::new(bytes);
    match format {
        ImageFormat::Gif => GifDecoder::new(cursor).is_ok_and(|mut decoder| {
            let limited = decoder.set_limits(allocation(limits)).is_ok();
            limited && decoder.into_frames().take(2).count() > 1
        }),
        ImageFormat::WebP => WebPDecoder::new(cursor).is_ok_and(|d| d.has_animation()),
        ImageFormat::Png => PngDecoder::new(cursor).is_ok_and(|d| d.is_apng().unwrap_or(false)),
        _ => false,
    }
}

fn over_white(image: DynamicImage) -> RgbImage {
    if !image.color().has_alpha() {
        return image.into_rgb8();
    }
    let rgba = image.into_rgba8();
    let mut rgb = RgbImage::new(rgba.width(), rgba.height());
    for (from, to) in rgba.pixels().zip(rgb.pixels_mut()) {
        let [r, g, b, alpha] = from.0;
        let over = |c: u8| {
            let sum = u32::from(c) * u32::from(alpha) + 255 * (255 - u32::from(alpha));
            ((sum + 127) / 255) as u8
        };
        to.0 = [over(r), over(g), over(b)];
    }
    rgb
}
