//! PNG to 8-bit colours, as Pillow opens them.
//!
//! Profiles and texts are not decompressed: a few bytes of them can stand for gigabytes, and nothing here reads them.

use std::io::{Cursor, ErrorKind};

use image::{DynamicImage, RgbImage, RgbaImage};
use png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Transformations};

use super::loading::Grey16;

/// For rows and small chunks; the pixels themselves are not counted.
const LIMIT: usize = 64 << 20;

/// A decoded file.
pub(super) struct Png {
    /// RGB, or RGBA where some pixel may be transparent.
    pub(super) image: DynamicImage,
    pub(super) animated: bool,
    /// The EXIF block, without a prefix.
    pub(super) exif: Option<Vec<u8>>,
}

/// Decodes the picture of a file (of an animation: what stands for it); its size was looked at before.
pub(super) fn decode(bytes: &[u8], grey16: Grey16) -> Result<Png, DecodingError> {
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: LIMIT });
    decoder.set_ignore_iccp_chunk(true);
    decoder.set_ignore_text_chunk(true);
    decoder.set_transformations(Transformations::EXPAND);
    let mut reader = decoder.read_info()?;
    let size = reader.output_buffer_size().ok_or(DecodingError::LimitsExceeded)?;
    let mut data = vec![0; size];
    let info = reader.next_frame(&mut data)?;
    data.truncate(info.buffer_size());
    let grey = reader.info().color_type == ColorType::Grayscale;
    if info.bit_depth == BitDepth::Sixteen {
        let narrow = |sample: &[u8; 2]| match (grey, grey16) {
            (true, Grey16::Clip) => u16::from_be_bytes(*sample).min(255) as u8,
            _ => sample[0],
        };
        data = data.as_chunks::<2>().0.iter().map(narrow).collect();
    }
    let (width, height) = (info.width, info.height);
    let image = match info.color_type {
        ColorType::Rgb => RgbImage::from_raw(width, height, data).map(Into::into),
        ColorType::Rgba => RgbaImage::from_raw(width, height, data).map(Into::into),
        ColorType::GrayscaleAlpha => {
            let pixels = data.as_chunks::<2>().0.iter().flat_map(|[v, a]| [*v, *v, *v, *a]);
            RgbaImage::from_raw(width, height, pixels.collect()).map(Into::into)
        }
        ColorType::Grayscale | ColorType::Indexed => {
            let pixels = data.iter().flat_map(|v| [*v; 3]);
            RgbImage::from_raw(width, height, pixels.collect()).map(Into::into)
        }
    };
    let info = reader.info();
    Ok(Png {
        image: image.ok_or(DecodingError::LimitsExceeded)?,
        animated: info.animation_control.is_some(),
        exif: info.exif_metadata.as_ref().map(|exif| exif.to_vec()),
    })
}

/// Whether the file ended before the picture did.
pub(super) fn ended_early(error: &DecodingError) -> bool {
    matches!(error, DecodingError::IoError(io) if io.kind() == ErrorKind::UnexpectedEof)
}
