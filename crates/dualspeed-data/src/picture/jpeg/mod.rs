//! JPEG, decoded as libjpeg-turbo decodes it by default: the same integer inverse transform, the same smooth ("fancy")
//! upsampling, the same colour tables, so that pixels are equal to those of Pillow and OpenCV.
//!
//! Sequential and progressive files with Huffman coding and 8 bits a sample, of 1, 3 or 4 components. Stray bytes between
//! segments are skipped as libjpeg skips them; damaged or missing data is an error, where libjpeg fills in grey.
//!
//! | module | concept |
//! |---|---|
//! | `header` | segments: sizes, tables, which colours the components are |
//! | `huffman`, `bits` | code tables; bits of a scan |
//! | `planes` | samples of every component, block by block |
//! | `sequential`, `progressive` | coefficients of a scan |
//! | `idct`, `upsample`, `colour` | coefficients to samples, to full size, to RGB |
//!
//! Source: ITU-T T.81; the choices that the standard leaves open are libjpeg-turbo's (jidctint.c, jdsample.c, jdcolor.c).

mod bits;
mod colour;
mod header;
mod huffman;
mod idct;
mod planes;
mod progressive;
mod sequential;
mod upsample;

use image::RgbImage;

use header::{Frame, Reader, Segment};
use planes::Planes;

/// Why a file is no picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum JpegError {
    /// Data ends early; what is missing.
    Truncated(&'static str),
    /// Data contradicts itself.
    Broken(&'static str),
    /// A kind of JPEG that is not decoded here.
    Unsupported(&'static str),
}

/// More scans than any encoder writes: each may walk all blocks of the picture on a few bytes.
const MAX_SCANS: usize = 500;

/// Width and height in pixels; reads no further than the frame header.
pub(super) fn size(bytes: &[u8]) -> Result<(u32, u32), JpegError> {
    let mut reader = Reader::new(bytes)?;
    loop {
        match reader.next()? {
            Segment::Frame => {
                let Frame { width, height, .. } = reader.frame()?;
                return Ok((*width as u32, *height as u32));
            }
            Segment::Scan(_) | Segment::End => {
                return Err(JpegError::Broken("there is no frame header before the first scan"));
            }
            Segment::Other => {}
        }
    }
}

/// Decodes to RGB, and finds the EXIF block, without a prefix; whoever calls has looked at [`size`].
pub(super) fn decode(bytes: &[u8]) -> Result<(RgbImage, Option<&[u8]>), JpegError> {
    let mut reader = Reader::new(bytes)?;
    let mut planes: Option<Planes> = None;
    let mut scans = 0;
    loop {
        match reader.next()? {
            Segment::Frame if planes.is_some() => {
                return Err(JpegError::Broken("there are two frame headers"));
            }
            Segment::Frame => planes = Some(Planes::new(reader.frame()?)),
            Segment::Scan(scan) => {
                let planes = planes.as_mut();
                let planes = planes.ok_or(JpegError::Broken("a scan comes before the frame"))?;
                scans += 1;
                if scans > MAX_SCANS {
                    return Err(JpegError::Broken("there are more than 500 scans"));
                }
                planes.begin_scan(&reader, &scan)?;
                match reader.frame()?.progressive {
                    true => progressive::decode_scan(planes, &mut reader, &scan)?,
                    false => sequential::decode_scan(planes, &mut reader, &scan)?,
                }
            }
            Segment::End => break,
            Segment::Other => {}
        }
    }
    let mut planes = planes.ok_or(JpegError::Broken("there is no frame header"))?;
    planes.finish()?;
    let frame = reader.frame()?;
    Ok((colour::to_rgb(frame, &planes, reader.colours()?)?, reader.exif))
}
