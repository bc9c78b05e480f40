//! Separable, antialiased resampling in 32-bit floats, for pixels with premultiplied alpha: the filter is stretched by the
//! scale when shrinking, so that every input pixel counts. (Photographs take [`resize`](super::resize_rgb), in integers.)

/// The resampling kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Linear interpolation; support 1.
    Bilinear,
    /// Cubic convolution with a = -0.5; support 2. What CLIP's preprocessing uses.
    Bicubic,
}

impl Filter {
    /// How far the filter reaches, in pixels.
    pub(super) fn support_f64(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    /// The weight at a distance, in Pillow's order of operations.
    pub(super) fn weight_f64(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bicubic => 0.0,
        }
    }

    fn support(self) -> f32 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f32) -> f32 {
        const A: f32 = -0.5;
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            Self::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            Self::Bicubic => 0.0,
        }
    }
}

/// For every output pixel: the first input pixel that counts, and the weights from there on (they sum to 1).
fn taps(from: usize, to: usize, filter: Filter) -> Vec<(usize, Vec<f32>)> {
    let scale = from as f32 / to as f32;
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    (0..to)
        .map(|i| {
            let centre = (i as f32 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let last = ((centre + support + 0.5) as usize).min(from);
            let mut weights: Vec<f32> =
                (first..last).map(|j| filter.weight((j as f32 + 0.5 - centre) / stretch)).collect();
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
            (first, weights)
        })
        .collect()
}

/// Resamples `C` interleaved channels from `[height, width, C]` to `[to_height, to_width, C]`, row by row: `read` puts
/// input row `y` into the buffer it is given, so that nobody has to hold the input as f32, or padded.
/// Alpha must be premultiplied. `finish` is applied to every value after each pass.
pub fn resample<const C: usize>(
    mut read: impl FnMut(usize, &mut [[f32; C]]),
    (width, height): (usize, usize),
    (to_width, to_height): (usize, usize),
    filter: Filter,
    finish: impl Fn(f32) -> f32,
) -> Vec<[f32; C]> {
    let columns = taps(width, to_width, filter);
    let mut narrow = Vec::with_capacity(to_width * height);
    let mut row = vec![[0.0; C]; width];
    for y in 0..height {
        read(y, &mut row);
        for (first, weights) in &columns {
            let mut sum = [0.0; C];
            for (pixel, &weight) in row[*first..].iter().zip(weights) {
                for c in 0..C {
                    sum[c] += pixel[c] * weight;
                }
            }
            narrow.push(sum.map(&finish));
        }
    }
    let mut result = Vec::with_capacity(to_width * to_height);
    let mut line = vec![[0.0; C]; to_width];
    for (first, weights) in &taps(height, to_height, filter) {
        line.fill([0.0; C]);
        for (row, &weight) in narrow[first * to_width..].chunks_exact(to_width).zip(weights) {
            for (sum, pixel) in line.iter_mut().zip(row) {
                for c in 0..C {
                    sum[c] += pixel[c] * weight;
                }
            }
        }
        result.extend(line.iter().map(|sum| sum.map(&finish)));
    }
    result
}
