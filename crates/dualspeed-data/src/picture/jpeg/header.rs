//! Segments of a JPEG file: sizes, tables, and which colours the components are.

use super::JpegError;
use super::huffman::HuffmanTable;

/// Positions of coefficients in the order in which they are coded.
pub(super) const ZIGZAG: [u8; 64] = [
    0, 1, 8, 16, 9, 2, 3, 10, 17, 24, 32, 25, 18, 11, 4, 5, 12, 19, 26, 33, 40, 48, 41, 34, 27, 20,
    13, 6, 7, 14, 21, 28, 35, 42, 49, 56, 57, 50, 43, 36, 29, 22, 15, 23, 30, 37, 44, 51, 58, 59,
    52, 45, 38, 31, 39, 46, 53, 60, 61, 54, 47, 55, 62, 63,
];

/// One colour of the picture.
#[derive(Clone, Debug)]
pub(super) struct Component {
    pub(super) id: u8,
    /// Blocks of an interleaved unit, across and down.
    pub(super) sampling: [usize; 2],
    /// Index of its quantisation table.
    quantisation: usize,
    /// Samples that show the picture, across and down.
    pub(super) size: [usize; 2],
}

/// The frame header.
#[derive(Clone, Debug)]
pub(super) struct Frame {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) progressive: bool,
    pub(super) components: Vec<Component>,
    /// The largest sampling of any component, across and down.
    pub(super) largest: [usize; 2],
}

impl Frame {
    /// Interleaved units, across and down.
    pub(super) fn units(&self) -> [usize; 2] {
        let [h, v] = self.largest;
        [self.width.div_ceil(8 * h), self.height.div_ceil(8 * v)]
    }
}

/// The header of a scan.
#[derive(Clone, Debug)]
pub(super) struct Scan {
    /// Index of each component, and of its DC and AC table.
    pub(super) components: Vec<[usize; 3]>,
    /// First and last coefficient.
    pub(super) band: [usize; 2],
    /// Bits that earlier scans left out, or 0; and those that this one leaves out.
    pub(super) high: u8,
    pub(super) low: u8,
}

/// What the components are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    Grey,
    Rgb,
    YCbCr,
    Cmyk,
    Ycck,
}

/// What was read.
pub(super) enum Segment {
    Frame,
    Scan(Scan),
    End,
    Other,
}

/// Reads segment after segment and remembers tables.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    /// Where the next segment, or the data of a scan, begins.
    pub(super) at: usize,
    frame: Option<Frame>,
    quantisation: [Option<[u16; 64]>; 4],
    pub(super) dc: [Option<HuffmanTable>; 4],
    pub(super) ac: [Option<HuffmanTable>; 4],
    pub(super) restart_interval: usize,
    jfif: bool,
    adobe_transform: Option<u8>,
    /// The first EXIF block, without its prefix.
    pub(super) exif: Option<&'a [u8]>,
}

const NO_END: JpegError = JpegError::Truncated("the end marker is missing");
const SHORT: JpegError = JpegError::Broken("a segment is shorter than what it holds");

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Result<Self, JpegError> {
        if !bytes.starts_with(&[0xff, 0xd8]) {
            return Err(JpegError::Broken("it does not start as a JPEG file"));
        }
        Ok(Self {
            bytes,
            at: 2,
            frame: None,
            quantisation: [None; 4],
            dc: [const { None }; 4],
            ac: [const { None }; 4],
            restart_interval: 0,
            jfif: false,
            adobe_transform: None,
            exif: None,
        })
    }

    pub(super) fn frame(&self) -> Result<&Frame, JpegError> {
        self.frame.as_ref().ok_or(JpegError::Broken("there is no frame header"))
    }

    pub(super) fn quantisation(&self, component: usize) -> Result<&[u16; 64], JpegError> {
        let component = self.frame()?.components.get(component);
        let table = component.and_then(|c| self.quantisation.get(c.quantisation)?.as_ref());
        table.ok_or(JpegError::Broken("a quantisation table is missing"))
    }

    /// The next marker, whatever stands before it; fill bytes and stray bytes are skipped.
    fn marker(&mut self) -> Result<u8, JpegError> {
        loop {
            let rest = self.bytes.get(self.at..).unwrap_or_default();
            let start = rest.iter().position(|byte| *byte == 0xff).ok_or(NO_END)?;
            let fill = rest[start..].iter().take_while(|byte| **byte == 0xff).count();
            let marker = *rest.get(start + fill).ok_or(NO_END)?;
            self.at += start + fill + 1;
            if marker != 0 {
                return Ok(marker);
            }
        }
    }

    /// Steps over the restart marker `number` (0 to 7).
    pub(super) fn restart(&mut self, number: u8) -> Result<(), JpegError> {
        match self.marker()? {
            marker if marker == 0xd0 + number => Ok(()),
            0xd9 => Err(JpegError::Truncated("the data of a scan ends early")),
            _ => Err(JpegError::Broken("a restart marker is missing")),
        }
    }

    pub(super) fn next(&mut self) -> Result<Segment, JpegError> {
        let marker = self.marker()?;
        match marker {
            0xd9 => return Ok(Segment::End),
            0xd8 => return Err(JpegError::Broken("a second picture starts within the first")),
            // Markers without a segment.
            0x01 | 0xd0..=0xd7 => return Ok(Segment::Other),
            _ => {}
        }
        let length = self.bytes.get(self.at..self.at + 2).ok_or(NO_END)?;
        let length = usize::from(u16::from_be_bytes([length[0], length[1]]));
        if length < 2 {
            return Err(JpegError::Broken("a segment has no length"));
        }
        let data = self.bytes.get(self.at + 2..self.at + length).ok_or(NO_END)?;
        self.at += length;
        match marker {
            0xc0..=0xc2 => {
                self.frame = Some(frame(data, marker == 0xc2)?);
                return Ok(Segment::Frame);
            }
            0xc4 => self.huffman_tables(data)?,
            0xc3 | 0xc5..=0xc7 | 0xcb | 0xcd..=0xcf => {
                return Err(JpegError::Unsupported("lossless or hierarchical JPEG"));
            }
            0xc9 | 0xca => return Err(JpegError::Unsupported("JPEG with arithmetic coding")),
            0xda => return Ok(Segment::Scan(self.scan(data)?)),
            0xdb => self.quantisation_tables(data)?,
            0xdd => {
                let [high, low, ..] = data else { return Err(SHORT) };
                self.restart_interval = usize::from(u16::from_be_bytes([*high, *low]));
            }
            0xe0 if data.starts_with(b"JFIF\0") && data.len() >= 12 => self.jfif = true,
            0xee if data.starts_with(b"Adobe") && data.len() >= 12 => {
                self.adobe_transform = Some(data[11]);
            }
            0xe1 if self.exif.is_none() => self.exif = data.strip_prefix(b"Exif\0\0"),
            _ => {}
        }
        Ok(Segment::Other)
    }

    fn quantisation_tables(&mut self, mut data: &[u8]) -> Result<(), JpegError> {
        while let Some((kind, rest)) = data.split_first() {
            let (wide, slot) = (kind >> 4 > 0, usize::from(kind & 15));
            let size = if wide { 128 } else { 64 };
            let values = rest.get(..size).ok_or(SHORT)?;
            let mut table = [0; 64];
            for (i, at) in ZIGZAG.iter().enumerate() {
                table[usize::from(*at)] = match wide {
                    true => u16::from_be_bytes([values[2 * i], values[2 * i + 1]]),
                    false => u16::from(values[i]),
                };
            }
            let slot = self.quantisation.get_mut(slot);
            *slot.ok_or(JpegError::Broken("a quantisation table has no such number"))? =
                Some(table);
            data = &rest[size..];
        }
        Ok(())
    }

    fn huffman_tables(&mut self, mut data: &[u8]) -> Result<(), JpegError> {
        while let Some((kind, rest)) = data.split_first() {
            let counts: &[u8; 16] = rest.first_chunk().ok_or(SHORT)?;
            let total = counts.iter().map(|count| usize::from(*count)).sum::<usize>();
            let symbols = rest.get(16..16 + total).ok_or(SHORT)?;
            let (ac, slot) = (kind >> 4, usize::from(kind & 15));
            let tables = if ac == 0 { &mut self.dc } else { &mut self.ac };
            let slot = tables.get_mut(slot).filter(|_| ac < 2);
            *slot.ok_or(JpegError::Broken("a Huffman table has no such number"))? =
                Some(HuffmanTable::new(counts, symbols, ac == 0)?);
            data = &rest[16 + total..];
        }
        Ok(())
    }

    fn scan(&self, data: &[u8]) -> Result<Scan, JpegError> {
        let frame = self.frame()?;
        let (count, rest) = data.split_first().ok_or(SHORT)?;
        let count = usize::from(*count);
        if !(1..=4).contains(&count) {
            return Err(JpegError::Broken("a scan has no components, or too many"));
        }
        let [entries, band] = [rest.get(..2 * count), rest.get(2 * count..)];
        let (Some(entries), Some([first, last, bits, ..])) = (entries, band) else {
            return Err(SHORT);
        };
        let mut components: Vec<[usize; 3]> = Vec::with_capacity(count);
        for entry in entries.chunks_exact(2) {
            let index = frame.components.iter().position(|c| c.id == entry[0]);
            let index = index.filter(|index| components.iter().all(|[other, ..]| other != index));
            let index = index.ok_or(JpegError::Broken("a scan names unknown components"))?;
            let (dc, ac) = (usize::from(entry[1] >> 4), usize::from(entry[1] & 15));
            if dc > 3 || ac > 3 {
                return Err(JpegError::Broken("a Huffman table has no such number"));
            }
            components.push([index, dc, ac]);
        }
        let unit = components.iter().map(|[index, ..]| frame.components[*index].sampling);
        if count > 1 && unit.map(|[h, v]| h * v).sum::<usize>() > 10 {
            return Err(JpegError::Broken("a scan has more than 10 blocks in a unit"));
        }
        let (high, low) = (bits >> 4, bits & 15);
        let band = [usize::from(*first), usize::from(*last)];
        let scan = match frame.progressive {
            false => Scan { components, band: [0, 63], high: 0, low: 0 },
            true => Scan { components, band, high, low },
        };
        let [first, last] = scan.band;
        let sound = match first {
            0 => !frame.progressive || last == 0,
            _ => last >= first && last < 64 && scan.components.len() == 1,
        };
        if !sound || scan.low > 13 || (scan.high != 0 && scan.high != scan.low + 1) {
            return Err(JpegError::Broken("a scan has impossible parameters"));
        }
        Ok(scan)
    }

    /// What the components are, by libjpeg's rules.
    pub(super) fn colours(&self) -> Result<Colours, JpegError> {
        let components = &self.frame()?.components;
        Ok(match (components.len(), self.adobe_transform) {
            (1, _) => Colours::Grey,
            (3, _) if self.jfif => Colours::YCbCr,
            (3, Some(0)) => Colours::Rgb,
            (3, Some(_)) => Colours::YCbCr,
            (3, None) if components.iter().map(|c| c.id).eq(*b"RGB") => Colours::Rgb,
            (3, None) => Colours::YCbCr,
            (_, None | Some(0)) => Colours::Cmyk,
            (_, Some(_)) => Colours::Ycck,
        })
    }
}

fn frame(data: &[u8], progressive: bool) -> Result<Frame, JpegError> {
    let Some(([precision, h0, h1, w0, w1, count], rest)) = data.split_first_chunk() else {
        return Err(SHORT);
    };
    if *precision != 8 {
        return Err(JpegError::Unsupported("JPEG with more than 8 bits a sample"));
    }
    let height = usize::from(u16::from_be_bytes([*h0, *h1]));
    let width = usize::from(u16::from_be_bytes([*w0, *w1]));
    if !matches!(count, 1 | 3 | 4) {
        return Err(JpegError::Unsupported("JPEG of neither 1, 3 nor 4 components"));
    }
    let mut components = Vec::new();
    for entry in rest.get(..3 * usize::from(*count)).ok_or(SHORT)?.chunks_exact(3) {
        let sampling = [usize::from(entry[1] >> 4), usize::from(entry[1] & 15)];
        if sampling.iter().any(|factor| !(1..=4).contains(factor)) {
            return Err(JpegError::Broken("a component has an impossible sampling"));
        }
        let quantisation = usize::from(entry[2]);
        components.push(Component { id: entry[0], sampling, quantisation, size: [0; 2] });
    }
    let largest = [0, 1]
        .map(|axis| components.iter().map(|component| component.sampling[axis]).max().unwrap_or(1));
    for component in &mut components {
        let [h, v] = component.sampling;
        if largest[0] % h != 0 || largest[1] % v != 0 {
            return Err(JpegError::Unsupported("JPEG with fractional sampling"));
        }
        component.size = [(width * h).div_ceil(largest[0]), (height * v).div_ceil(largest[1])];
    }
    Ok(Frame { width, height, progressive, components, largest })
}
