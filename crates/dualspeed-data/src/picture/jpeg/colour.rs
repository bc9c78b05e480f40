//! Components to RGB.
//!
//! Source: libjpeg-turbo's jdcolor.c (16 bits of fraction, rounded halves up); inks to RGB as Pillow's `convert("RGB")`,
//! which takes inks for inverted, as Adobe's programs write them.

use dualspeed_core::multiversion;
use image::RgbImage;

use super::JpegError;
use super::header::{Colours, Frame};
use super::planes::Planes;
use super::upsample::Upsampler;

/// The picture of finished planes.
pub(super) fn to_rgb(
    frame: &Frame,
    planes: &Planes,
    colours: Colours,
) -> Result<RgbImage, JpegError> {
    let Frame { width, height, components, largest, .. } = frame;
    let mut samplers: Vec<Upsampler<'_>> = planes
        .planes
        .iter()
        .zip(components)
        .map(|(plane, component)| Upsampler::new(plane, component, *largest))
        .collect();
    let mut pixels = vec![0; width * height * 3];
    for (y, out) in pixels.chunks_exact_mut((width * 3).max(1)).enumerate() {
        match &mut samplers[..] {
            [grey] => {
                for (out, grey) in out.as_chunks_mut::<3>().0.iter_mut().zip(grey.row(y)) {
                    *out = [*grey; 3];
                }
            }
            [a, b, c] => {
                let [a, b, c] = [a.row(y), b.row(y), c.row(y)].map(|row| &row[..*width]);
                match colours {
                    Colours::Rgb => interleave(a, b, c, out),
                    _ => ycc_to_rgb(a, b, c, out),
                }
            }
            [a, b, c, k] => {
                let [a, b, c, k] = [a.row(y), b.row(y), c.row(y), k.row(y)];
                for (x, out) in out.as_chunks_mut::<3>().0.iter_mut().enumerate() {
                    let mut inks = [a[x], b[x], c[x]];
                    if colours == Colours::Ycck {
                        inks = rgb(inks).map(|value| 255 - value);
                    }
                    // What is stored is 255 less the ink.
                    *out = inks.map(|ink| over(255 - ink, k[x]));
                }
            }
            _ => return Err(JpegError::Unsupported("JPEG of neither 1, 3 nor 4 components")),
        }
    }
    let size = (*width as u32, *height as u32);
    RgbImage::from_raw(size.0, size.1, pixels).ok_or(JpegError::Broken("it has no pixels"))
}

/// What an ink leaves of `light`, the paper's light behind black.
pub(super) fn over(ink: u8, light: u8) -> u8 {
    let product = u32::from(ink) * u32::from(light) + 128;
    light.saturating_sub((((product >> 8) + product) >> 8) as u8)
}

#[inline(always)]
fn rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let y = i32::from(y);
    let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
    const HALF: i32 = 1 << 15;
    let r = y + ((91_881 * cr + HALF) >> 16);
    let g = y + ((-22_554 * cb - 46_802 * cr + HALF) >> 16);
    let b = y + ((116_130 * cb + HALF) >> 16);
    [r, g, b].map(|value| value.clamp(0, 255) as u8)
}

multiversion! {
    fn ycc_to_rgb(y: &[u8], cb: &[u8], cr: &[u8], out: &mut [u8]) {
        for ((out, y), (cb, cr)) in out.as_chunks_mut::<3>().0.iter_mut().zip(y).zip(cb.iter().zip(cr)) {
            *out = rgb([*y, *cb, *cr]);
        }
    }
}

multiversion! {
    fn interleave(r: &[u8], g: &[u8], b: &[u8], out: &mut [u8]) {
        for ((out, r), (g, b)) in out.as_chunks_mut::<3>().0.iter_mut().zip(r).zip(g.iter().zip(b)) {
            *out = [*r, *g, *b];
        }
    }
}
