//! Rows of samples at full size: triangle filters where a component has half the samples along an axis ("fancy
//! upsampling"), copies elsewhere.
//!
//! Source: libjpeg-turbo's jdsample.c, biases of its roundings included.

use dualspeed_core::multiversion;

use super::header::Component;
use super::planes::Plane;

/// How one component is brought to full size.
pub(super) struct Upsampler<'a> {
    plane: &'a Plane,
    /// Samples that show the picture, across and down.
    size: [usize; 2],
    /// How many pixels a sample covers, across and down.
    factor: [usize; 2],
    sums: Vec<u16>,
    row: Vec<u8>,
}

impl<'a> Upsampler<'a> {
    /// `largest` is the largest sampling of any component.
    pub(super) fn new(plane: &'a Plane, component: &Component, largest: [usize; 2]) -> Self {
        let factor = [0, 1].map(|axis| largest[axis] / component.sampling[axis]);
        let size = component.size;
        // Whole groups of pixels, with room for the last one of an odd width.
        let row = vec![0; size[0] * factor[0]];
        Self { plane, size, factor, sums: vec![0; size[0]], row }
    }

    /// Samples of row `y` of the picture, at least as many as it is wide.
    pub(super) fn row(&mut self, y: usize) -> &[u8] {
        let (width, height) = (self.size[0], self.size[1]);
        let plane = self.plane;
        let line = |row: usize| &plane.samples[row * plane.stride..row * plane.stride + width];
        let row = (y / self.factor[1]).min(height - 1);
        // The neighbouring row that is nearer to the pixels; beyond the edge, the edge again.
        let neighbour = match y % 2 {
            0 => row.saturating_sub(1),
            _ => (row + 1).min(height - 1),
        };
        match self.factor {
            [1, 1] => return line(row),
            [2, 1] if width > 2 => widen(line(row), &mut self.row),
            [1, 2] => blend(line(row), line(neighbour), 1 + (y % 2) as u16, &mut self.row),
            [2, 2] if width > 2 => {
                weigh(line(row), line(neighbour), &mut self.sums);
                widen_sums(&self.sums, &mut self.row);
            }
            [h, _] => {
                for (group, sample) in self.row.chunks_exact_mut(h).zip(line(row)) {
                    group.fill(*sample);
                }
            }
        }
        &self.row
    }
}

multiversion! {
    /// Three parts of a sample and one of its neighbour on either side.
    fn widen(line: &[u8], out: &mut [u8]) {
        let n = line.len();
        let three = |i: usize| 3 * u16::from(line[i]);
        out[0] = line[0];
        out[1] = ((three(0) + u16::from(line[1]) + 2) >> 2) as u8;
        let inner = out[2..].chunks_exact_mut(2);
        for (out, near) in inner.zip(line.windows(3)) {
            let [left, this, right] = [near[0], near[1], near[2]].map(u16::from);
            out[0] = ((3 * this + left + 1) >> 2) as u8;
            out[1] = ((3 * this + right + 2) >> 2) as u8;
        }
        out[2 * n - 2] = ((three(n - 1) + u16::from(line[n - 2]) + 1) >> 2) as u8;
        out[2 * n - 1] = line[n - 1];
    }
}

multiversion! {
    /// Three parts of a row and one of its neighbour.
    fn blend(line: &[u8], neighbour: &[u8], bias: u16, out: &mut [u8]) {
        for (out, (this, other)) in out.iter_mut().zip(line.iter().zip(neighbour)) {
            *out = ((3 * u16::from(*this) + u16::from(*other) + bias) >> 2) as u8;
        }
    }
}

multiversion! {
    /// Three parts of a row and one of its neighbour, not yet divided.
    fn weigh(line: &[u8], neighbour: &[u8], out: &mut [u16]) {
        for (out, (this, other)) in out.iter_mut().zip(line.iter().zip(neighbour)) {
            *out = 3 * u16::from(*this) + u16::from(*other);
        }
    }
}

multiversion! {
    /// [`widen`] on sums of [`weigh`].
    fn widen_sums(sums: &[u16], out: &mut [u8]) {
        let n = sums.len();
        out[0] = ((4 * sums[0] + 8) >> 4) as u8;
        out[1] = ((3 * sums[0] + sums[1] + 7) >> 4) as u8;
        let inner = out[2..].chunks_exact_mut(2);
        for (out, near) in inner.zip(sums.windows(3)) {
            out[0] = ((3 * near[1] + near[0] + 8) >> 4) as u8;
            out[1] = ((3 * near[1] + near[2] + 7) >> 4) as u8;
        }
        out[2 * n - 2] = ((3 * sums[n - 1] + sums[n - 2] + 8) >> 4) as u8;
        out[2 * n - 1] = ((4 * sums[n - 1] + 7) >> 4) as u8;
    }
}
