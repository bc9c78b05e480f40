//! Resizing in Pillow's fixed-point arithmetic, to the last bit: weights computed in 64-bit floats and rounded to 22 bits of
//! fraction, 32-bit sums, 8-bit pixels between the horizontal and the vertical pass.
//!
//! Source: `Image.resize` of Pillow (src/libImaging/Resample.c), antialiased: the filter is stretched by the scale when
//! shrinking.

use dualspeed_core::multiversion;
use image::RgbImage;

use super::resample::Filter;

/// Bits of fraction of a weight.
const FRACTION: u32 = 22;
/// Rows that the horizontal pass takes side by side.
const LANES: usize = 16;

/// The input pixels that make one output pixel: the first of them, and their weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Taps of the output pixels `window` of `to`.
fn taps(from: usize, to: usize, window: std::ops::Range<usize>, filter: Filter) -> Vec<Taps> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = filter.support_f64() * stretch;
    let of = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let last = ((centre + support + 0.5) as usize).min(from);
        let step = 1.0 / stretch;
        let weight = |j: usize| filter.weight_f64((j as f64 - centre + 0.5) * step);
        let weights: Vec<f64> = (first..last).map(weight).collect();
        let sum: f64 = weights.iter().sum();
        let whole = f64::from(1 << FRACTION);
        // Halves away from zero.
        let fixed = |weight: f64| (weight * whole + 0.5f64.copysign(weight)) as i32;
        let normal = |weight: f64| if sum == 0.0 { weight } else { weight / sum };
        Taps { first, weights: weights.into_iter().map(|w| fixed(normal(w))).collect() }
    };
    window.map(of).collect()
}

/// An image on a canvas of one colour.
struct Canvas<'a> {
    image: &'a RgbImage,
    size: [usize; 2],
    /// Where the image lies.
    offset: [usize; 2],
    colour: [u8; 3],
}

impl Canvas<'_> {
    /// Puts row `y` into lane `lane` of `rows`; says whether it shows any of the image.
    fn row(&self, y: usize) -> Option<&[u8]> {
        let width = self.image.width() as usize * 3;
        let y = y.checked_sub(self.offset[1])?;
        self.image.as_raw().get(y * width..(y + 1) * width).filter(|_| width > 0)
    }
}

multiversion! {
    /// Rows side by side to narrow rows: `[width * 3, LANES]` to `[columns, 3, LANES]`.
    fn narrow(rows: &[[u8; LANES]], taps: &[Taps], out: &mut [[u8; LANES]]) {
        for (taps, out) in taps.iter().zip(out.as_chunks_mut::<3>().0) {
            let mut sums = [[1i32 << (FRACTION - 1); LANES]; 3];
            let pixels = rows.as_chunks::<3>().0[taps.first..].iter();
            for (pixel, weight) in pixels.zip(&taps.weights) {
                for (sums, values) in sums.iter_mut().zip(pixel) {
                    for (sum, value) in sums.iter_mut().zip(values) {
                        *sum += i32::from(*value) * weight;
                    }
                }
            }
            for (out, sums) in out.iter_mut().zip(&sums) {
                for (out, sum) in out.iter_mut().zip(sums) {
                    *out = (sum >> FRACTION).clamp(0, 255) as u8;
                }
            }
        }
    }
}

multiversion! {
    /// A weighted row onto sums.
    fn add_row(sums: &mut [i32], row: &[u8], weight: i32) {
        for (sum, value) in sums.iter_mut().zip(row) {
            *sum += i32::from(*value) * weight;
        }
    }
}

multiversion! {
    fn finish(sums: &[i32], out: &mut [u8]) {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = (sum >> FRACTION).clamp(0, 255) as u8;
        }
    }
}

/// Resizes to `to`, of which only the part `[width, height]` from `at` on is computed.
fn resize(
    canvas: &Canvas<'_>,
    to: [usize; 2],
    at: [usize; 2],
    part: [usize; 2],
    filter: Filter,
) -> RgbImage {
    let [width, height] = canvas.size;
    let columns = taps(width, to[0], at[0]..at[0] + part[0], filter);
    let lines = taps(height, to[1], at[1]..at[1] + part[1], filter);
    let line = part[0] * 3;
    // Rows of the canvas that count; the narrow ones stand from the first of them on.
    let first = lines.iter().map(|taps| taps.first).min().unwrap_or(0);
    let end = lines.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(0);
    let blank: Vec<u8> = canvas.colour.repeat(part[0]);
    let mut narrowed = blank.repeat(end - first);
    let empty: Vec<[u8; LANES]> =
        canvas.colour.repeat(width).iter().map(|value| [*value; LANES]).collect();
    let mut rows = empty;
    let mut out = vec![[0; LANES]; line];
    let left = canvas.offset[0] * 3;
    for group in (first..end).step_by(LANES) {
        let count = LANES.min(end - group);
        let shown: Vec<Option<&[u8]>> =
            (0..count).map(|lane| canvas.row(group + lane)).collect();
        // A row of the canvas's colour alone keeps it.
        if shown.iter().all(Option::is_none) {
            continue;
        }
        for (lane, row) in shown.iter().enumerate() {
            let Some(row) = row else { continue };
            for (to, value) in rows[left..].iter_mut().zip(*row) {
                to[lane] = *value;
            }
        }
        narrow(&rows, &columns, &mut out);
        for (lane, _) in shown.iter().enumerate().filter(|(_, row)| row.is_some()) {
            let start = (group + lane - first) * line;
            for (to, from) in narrowed[start..start + line].iter_mut().zip(&out) {
                *to = from[lane];
            }
        }
    }
    let mut pixels = vec![0; line * part[1]];
    let mut sums = vec![0; line];
    for (taps, out) in lines.iter().zip(pixels.chunks_exact_mut(line.max(1))) {
        sums.fill(1 << (FRACTION - 1));
        let rows = narrowed[(taps.first - first) * line..].chunks_exact(line.max(1));
        for (row, weight) in rows.zip(&taps.weights) {
            add_row(&mut sums, row, *weight);
        }
        finish(&sums, out);
    }
    let mut result = RgbImage::new(part[0] as u32, part[1] as u32);
    result.copy_from_slice(&pixels);
    result
}

fn whole(image: &RgbImage) -> Canvas<'_> {
    let size = [image.width() as usize, image.height() as usize];
    Canvas { image, size, offset: [0; 2], colour: [0; 3] }
}

/// Resizes an RGB image as `Image.resize` of Pillow does.
pub fn resize_rgb(image: &RgbImage, to_width: u32, to_height: u32, filter: Filter) -> RgbImage {
    let to = [to_width as usize, to_height as usize];
    resize(&whole(image), to, [0; 2], to, filter)
}

/// Centres an RGB image on a canvas of one colour (no smaller than the image) and resizes the whole.
pub fn resize_padded(
    image: &RgbImage,
    canvas: (u32, u32),
    colour: [u8; 3],
    to: (u32, u32),
    filter: Filter,
) -> RgbImage {
    let size = [canvas.0 as usize, canvas.1 as usize];
    let offset = [canvas.0 - image.width(), canvas.1 - image.height()].map(|gap| gap as usize / 2);
    let to = [to.0 as usize, to.1 as usize];
    resize(&Canvas { image, size, offset, colour }, to, [0; 2], to, filter)
}

/// Resizes an RGB image to `to`, and cuts a square of `side` pixels out of its centre.
pub(super) fn resize_cropped(
    image: &RgbImage,
    to: (u32, u32),
    side: u32,
    filter: Filter,
) -> RgbImage {
    let to = [to.0 as usize, to.1 as usize];
    let side = side as usize;
    let at = to.map(|length| (length - side) / 2);
    resize(&whole(image), to, at, [side; 2], filter)
}
