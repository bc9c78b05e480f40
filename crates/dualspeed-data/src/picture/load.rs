//! Bytes to RGB pixels, with limits checked before anything is decoded.
//!
//! Pixels are those of Pillow's `convert("RGB")`, so those that LLaVA and transformers see, but for the choices of
//! [`ImageLoading`]. Animations (GIF, WebP, APNG) give their first frame, and [`LoadedImage::animated`] says so. Files that
//! end early are errors: decoders fill the missing part with grey and say nothing.

use std::io::{Cursor, ErrorKind};
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, RgbImage};

use super::file::{printable, read_image_file};
use super::jpeg::{self, JpegError};
use super::loading::{ImageLoading, Transparency};
use super::png;
use crate::error::ImageError;

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
/// If the file is missing, no ordinary file, empty, truncated, too large, of zero size, or of an unknown or broken format.
pub fn load_image(
    path: impl AsRef<Path>,
    loading: &ImageLoading,
) -> Result<LoadedImage, ImageError> {
    let bytes = read_image_file(path.as_ref(), loading)?;
    decode_image(&bytes, &printable(path.as_ref()), loading)
}

/// Decodes an image; `name` is what errors call it.
///
/// # Errors
/// If the bytes are none, truncated, too large an image, of zero size, or of an unknown or broken format.
pub fn decode_image(
    bytes: &[u8],
    name: &str,
    loading: &ImageLoading,
) -> Result<LoadedImage, ImageError> {
    if bytes.is_empty() {
        return Err(ImageError::EmptyFile { name: name.into() });
    }
    if bytes.starts_with(b"version https://git-lfs.github.com/") {
        return Err(ImageError::LfsPointer { name: name.into() });
    }
    let format =
        image::guess_format(bytes).map_err(|_| ImageError::UnknownFormat { name: name.into() })?;
    let (image, animated, exif) = match format {
        ImageFormat::Jpeg => {
            let failed = |error| jpeg_error(name, error);
            let (width, height) = jpeg::size(bytes).map_err(failed)?;
            check_size(name, width, height, loading)?;
            let (pixels, exif) = jpeg::decode(bytes).map_err(failed)?;
            (pixels.into(), false, exif.map(<[u8]>::to_vec))
        }
        ImageFormat::Png => {
            if let Some((width, height)) = announced_size(bytes, format) {
                check_size(name, width, height, loading)?;
            }
            let decoded = png::decode(bytes, loading.grey16);
            let png = decoded.map_err(|error| png_error(name, error))?;
            (png.image, png.animated, png.exif)
        }
        _ => {
            let image = decode_other(bytes, name, format, loading)?;
            (image, is_animated(bytes, format, loading), webp_exif(bytes).map(<[u8]>::to_vec))
        }
    };
    let mut image = DynamicImage::from(to_rgb(image, loading.transparency));
    let orientation = exif.as_deref().and_then(Orientation::from_exif_chunk);
    if let Some(orientation) = orientation.filter(|_| loading.exif_orientation) {
        image.apply_orientation(orientation);
    }
    Ok(LoadedImage { pixels: image.into_rgb8(), animated })
}

/// Formats that are left to the `image` crate.
fn decode_other(
    bytes: &[u8],
    name: &str,
    format: ImageFormat,
    loading: &ImageLoading,
) -> Result<DynamicImage, ImageError> {
    if let Some((width, height)) = announced_size(bytes, format) {
        check_size(name, width, height, loading)?;
    }
    let fail = |error| decode_error(name, error);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(allocation(loading));
    let mut decoder = reader.into_decoder().map_err(fail)?;
    let (width, height) = decoder.dimensions();
    check_size(name, width, height, loading)?;
    decoder.set_limits(allocation(loading)).map_err(fail)?;
    DynamicImage::from_decoder(decoder).map_err(fail)
}

/// 16 bytes a pixel (RGBA f32) for the result, as much again for the decoder's own buffers.
fn allocation(loading: &ImageLoading) -> image::Limits {
    let mut allocation = image::Limits::default();
    allocation.max_alloc = Some(loading.max_pixels.saturating_mul(32));
    allocation
}

fn check_size(
    name: &str,
    width: u32,
    height: u32,
    loading: &ImageLoading,
) -> Result<(), ImageError> {
    let name = name.to_string();
    let ImageLoading { max_side, max_pixels, .. } = *loading;
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

/// The EXIF block of a WebP file, without a prefix.
fn webp_exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.strip_prefix(b"RIFF")?.get(4..)?.strip_prefix(b"WEBP")?;
    while let Some((kind, after)) = rest.split_first_chunk::<4>() {
        let (size, after) = after.split_first_chunk::<4>()?;
        let size = u32::from_le_bytes(*size) as usize;
        if kind == b"EXIF" {
            let exif = after.get(..size)?;
            return Some(exif.strip_prefix(b"Exif\0\0").unwrap_or(exif));
        }
        // Chunks are padded to an even length.
        rest = after.get(size.checked_add(size % 2)?..)?;
    }
    None
}

fn jpeg_error(name: &str, error: JpegError) -> ImageError {
    let name = name.to_string();
    match error {
        JpegError::Truncated(reason) => ImageError::Truncated { name, reason: reason.into() },
        JpegError::Broken(reason) => ImageError::Decode { name, reason: reason.into() },
        JpegError::Unsupported(kind) => {
            ImageError::Decode { name, reason: format!("{kind} is not supported") }
        }
    }
}

fn png_error(name: &str, error: ::png::DecodingError) -> ImageError {
    let name = name.to_string();
    match png::ended_early(&error) {
        true => ImageError::Truncated { name, reason: "the data ends early".into() },
        false => ImageError::Decode { name, reason: error.to_string() },
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

fn is_animated(bytes: &[u8], format: ImageFormat, loading: &ImageLoading) -> bool {
    use image::AnimationDecoder;
    use image::codecs::{gif::GifDecoder, webp::WebPDecoder};
    let cursor = Cursor::new(bytes);
    match format {
        ImageFormat::Gif => GifDecoder::new(cursor).is_ok_and(|mut decoder| {
            let limited = decoder.set_limits(allocation(loading)).is_ok();
            limited && decoder.into_frames().take(2).count() > 1
        }),
        ImageFormat::WebP => WebPDecoder::new(cursor).is_ok_and(|d| d.has_animation()),
        _ => false,
    }
}

fn to_rgb(image: DynamicImage, transparency: Transparency) -> RgbImage {
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
        to.0 = match transparency {
            Transparency::Drop => [r, g, b],
            Transparency::White => [over(r), over(g), over(b)],
        };
    }
    rgb
}
