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
    /// Whether the image is all there is.
    fn is_covered(&self) -> bool {
        self.size == [self.image.width() as usize, self.image.height() as usize]
    }

    /// The part of row `y` that shows the image; `None` where there is only canvas.
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

/// The horizontal pass over rows `rows` of a canvas.
fn horizontal(canvas: &Canvas<'_>, rows: std::ops::Range<usize>, columns: &[Taps]) -> Vec<u8> {
    let line = columns.len() * 3;
    let mut narrowed = canvas.colour.repeat(columns.len() * rows.len());
    let colours = canvas.colour.repeat(canvas.size[0]);
    let mut lanes: Vec<[u8; LANES]> = colours.iter().map(|value| [*value; LANES]).collect();
    let mut out = vec![[0; LANES]; line];
    let left = canvas.offset[0] * 3;
    for group in rows.clone().step_by(LANES) {
        let shown = (group..rows.end.min(group + LANES)).map(|y| canvas.row(y)).enumerate();
        // A row of the canvas's colour alone keeps it.
        let shown = shown.filter_map(|(lane, row)| Some((lane, row?)));
        let shown: Vec<(usize, &[u8])> = shown.collect();
        for (lane, row) in &shown {
            for (to, value) in lanes[left..].iter_mut().zip(*row) {
                to[*lane] = *value;
            }
        }
        if !shown.is_empty() {
            narrow(&lanes, columns, &mut out);
        }
        for (lane, _) in shown {
            let start = (group + lane - rows.start) * line;
            for (to, from) in narrowed[start..start + line].iter_mut().zip(&out) {
                *to = from[lane];
            }
        }
    }
    narrowed
}

/// The vertical pass over rows of `line` bytes, of which the first is row `first` of the canvas.
fn vertical(rows: &[u8], line: usize, first: usize, lines: &[Taps]) -> Vec<u8> {
    let line = line.max(1);
    let mut pixels = vec![0; line * lines.len()];
    let mut sums = vec![0; line];
    for (taps, out) in lines.iter().zip(pixels.chunks_exact_mut(line)) {
        sums.fill(1 << (FRACTION - 1));
        let rows = rows[(taps.first - first) * line..].chunks_exact(line);
        for (row, weight) in rows.zip(&taps.weights) {
            add_row(&mut sums, row, *weight);
        }
        finish(&sums, out);
    }
    pixels
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
    let image = |pixels, width| RgbImage::from_raw(width, part[1] as u32, pixels);
    let pixels = if is_vertical_first(canvas.size, to) && canvas.is_covered() {
        let rows = vertical(canvas.image.as_raw(), width * 3, 0, &lines);
        let low = image(rows, width as u32).unwrap_or_default();
        horizontal(&whole(&low), 0..part[1], &columns)
    } else {
        // Rows of the canvas that count.
        let first = lines.iter().map(|taps| taps.first).min().unwrap_or(0);
        let end = lines.iter().map(|taps| taps.first + taps.weights.len()).max().unwrap_or(0);
        vertical(&horizontal(canvas, first..end, &columns), part[0] * 3, first, &lines)
    };
    image(pixels, part[0] as u32).unwrap_or_default()
}

/// Which pass comes first, as Pillow 13 decides (before it, the horizontal one always did): it makes a difference of at
/// most a few units in some pixels.
fn is_vertical_first([width, height]: [usize; 2], [to_width, to_height]: [usize; 2]) -> bool {
    let (fewer_columns, fewer_rows) =
        (width as i64 - to_width as i64, height as i64 - to_height as i64);
    fewer_rows > 0 && fewer_rows > 2 * fewer_columns
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
