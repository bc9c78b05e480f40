//! The samples of every component, filled scan by scan.

use super::JpegError;
use super::bits::Bits;
use super::header::{Frame, Reader, Scan};
use super::idct::inverse_transform;

/// One component of the picture.
pub(super) struct Plane {
    /// Samples, row by row, in whole blocks.
    pub(super) samples: Vec<u8>,
    /// Samples from one row to the next.
    pub(super) stride: usize,
    /// Rows and columns of blocks that show the picture.
    shown: [usize; 2],
    sampling: [usize; 2],
    /// Blocks of 64 coefficients: of the whole picture in progressive files, else of one row of interleaved units.
    coefficients: Vec<i16>,
    quantisation: Option<[u16; 64]>,
}

impl Plane {
    /// Blocks from one row of blocks to the next.
    fn across(&self) -> usize {
        self.stride / 8
    }

    /// Turns row `from` of the blocks into row `to` of the samples, in blocks.
    fn transform(&mut self, from: usize, to: usize) {
        let Some(quantisation) = &self.quantisation else { return };
        let (row, stride) = (self.across() * 64, self.stride);
        let coefficients = &self.coefficients[from * row..(from + 1) * row];
        let samples = &mut self.samples[to * 8 * stride..(to + 1) * 8 * stride];
        inverse_transform(coefficients, quantisation, samples, stride);
    }
}

/// All components.
pub(super) struct Planes {
    pub(super) planes: Vec<Plane>,
    progressive: bool,
    units: [usize; 2],
}

/// What is carried from block to block, up to the next restart marker.
#[derive(Default)]
pub(super) struct Carried {
    /// The last DC coefficient of each component of the scan.
    pub(super) dc: [i32; 4],
    /// Blocks whose band is known to hold nothing new.
    pub(super) empty_blocks: u32,
}

impl Planes {
    pub(super) fn new(frame: &Frame) -> Self {
        let units = frame.units();
        let plane = |component: &super::header::Component| {
            let [h, v] = component.sampling;
            let (stride, rows) = (units[0] * h * 8, units[1] * v);
            let kept = if frame.progressive { rows } else { v };
            Plane {
                samples: vec![0; stride * rows * 8],
                stride,
                shown: component.size.map(|side| side.div_ceil(8)),
                sampling: component.sampling,
                coefficients: vec![0; stride * 8 * kept],
                quantisation: None,
            }
        };
        let planes = frame.components.iter().map(plane).collect();
        Self { planes, progressive: frame.progressive, units }
    }

    /// Remembers the quantisation tables that hold when the first scan of a component begins.
    pub(super) fn begin_scan(&mut self, reader: &Reader<'_>, scan: &Scan) -> Result<(), JpegError> {
        for [index, ..] in &scan.components {
            if self.planes[*index].quantisation.is_none() {
                self.planes[*index].quantisation = Some(*reader.quantisation(*index)?);
            }
        }
        Ok(())
    }

    /// Calls `block` for every block of a scan, in the order in which they are coded.
    pub(super) fn walk(
        &mut self,
        reader: &mut Reader<'_>,
        scan: &Scan,
        mut block: impl FnMut(
            &mut Bits<'_>,
            &mut Carried,
            usize,
            &mut [i16; 64],
        ) -> Result<(), JpegError>,
    ) -> Result<(), JpegError> {
        const ENDS_EARLY: JpegError = JpegError::Truncated("the data of a scan ends early");
        // A component alone is coded block by block, without the blocks that show nothing.
        let alone = scan.components.len() == 1;
        let units = if alone { self.planes[scan.components[0][0]].shown } else { self.units };
        let bytes = reader.bytes;
        let mut bits = Bits::new(bytes, reader.at);
        let mut carried = Carried::default();
        let (mut left, mut number) = (reader.restart_interval, 0);
        for row in 0..units[1] {
            for [index, ..] in scan.components.iter().filter(|_| !self.progressive) {
                self.planes[*index].coefficients.fill(0);
            }
            for unit in 0..units[0] {
                if reader.restart_interval > 0 && left == 0 {
                    if bits.overrun() {
                        return Err(ENDS_EARLY);
                    }
                    reader.at = bits.end();
                    reader.restart(number)?;
                    bits = Bits::new(bytes, reader.at);
                    carried = Carried::default();
                    (left, number) = (reader.restart_interval, (number + 1) % 8);
                }
                left = left.saturating_sub(1);
                for (slot, [index, ..]) in scan.components.iter().enumerate() {
                    let plane = &mut self.planes[*index];
                    let [h, v] = if alone { [1, 1] } else { plane.sampling };
                    for j in 0..v {
                        let down = if self.progressive { row * v + j } else { j };
                        let first = (down * plane.across() + unit * h) * 64;
                        let blocks = &mut plane.coefficients[first..first + h * 64];
                        for coefficients in blocks.as_chunks_mut::<64>().0 {
                            block(&mut bits, &mut carried, slot, coefficients)?;
                        }
                    }
                }
            }
            if bits.overrun() {
                return Err(ENDS_EARLY);
            }
            for [index, ..] in scan.components.iter().filter(|_| !self.progressive) {
                let plane = &mut self.planes[*index];
                let v = if alone { 1 } else { plane.sampling[1] };
                (0..v).for_each(|j| plane.transform(j, row * v + j));
            }
        }
        reader.at = bits.end();
        Ok(())
    }

    /// After the last scan: every component must have had one.
    pub(super) fn finish(&mut self) -> Result<(), JpegError> {
        for plane in &mut self.planes {
            if plane.quantisation.is_none() {
                return Err(JpegError::Truncated("a component has no data"));
            }
            if self.progressive {
                (0..plane.shown[1]).for_each(|row| plane.transform(row, row));
                plane.coefficients = Vec::new();
            }
        }
        Ok(())
    }
}
