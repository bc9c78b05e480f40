//! The bits of a scan: stuffed zeros taken out, stopping at the next marker.

/// Reads bits, the highest first.
pub(super) struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
    /// The next bits, left-aligned.
    next: u64,
    count: u32,
    /// Zeros at the end of `next` that are not of the file.
    invented: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at, next: 0, count: 0, invented: 0 }
    }

    /// Makes at least 32 bits available; zeros follow the last ones of the scan.
    #[inline]
    pub(super) fn fill(&mut self) {
        if self.count < 32 {
            self.refill();
        }
    }

    fn refill(&mut self) {
        if let Some(chunk) = self.bytes.get(self.at..).and_then(|rest| rest.first_chunk::<8>()) {
            let chunk = u64::from_be_bytes(*chunk);
            // No byte is FF: whole bytes without looking at each.
            const ONES: u64 = u64::MAX / 255;
            if (!chunk).wrapping_sub(ONES) & chunk & (ONES << 7) == 0 {
                let bytes = (64 - self.count) / 8;
                let taken = chunk & (u64::MAX << (64 - 8 * bytes));
                self.next |= taken >> self.count;
                self.count += 8 * bytes;
                self.at += bytes as usize;
                return;
            }
        }
        while self.count <= 56 {
            let byte = match self.bytes.get(self.at..) {
                Some([0xff, rest @ ..]) => {
                    let fill = rest.iter().take_while(|byte| **byte == 0xff).count();
                    if rest.get(fill) != Some(&0) {
                        break;
                    }
                    self.at += 2 + fill;
                    0xff
                }
                Some([byte, ..]) => {
                    self.at += 1;
                    *byte
                }
                _ => break,
            };
            self.next |= u64::from(byte) << (56 - self.count);
            self.count += 8;
        }
        if self.count <= 56 {
            self.invented += 64 - self.count;
            self.count = 64;
        }
    }

    /// The next bits, of those that [`Bits::fill`] made available.
    #[inline]
    pub(super) fn peek(&self, count: u32) -> u32 {
        (self.next >> (64 - count)) as u32
    }

    #[inline]
    pub(super) fn skip(&mut self, count: u32) {
        self.next <<= count;
        self.count -= count;
    }

    /// Takes `count` bits, 0 to 16.
    #[inline]
    pub(super) fn take(&mut self, count: u32) -> u32 {
        if count == 0 {
            return 0;
        }
        self.fill();
        let bits = self.peek(count);
        self.skip(count);
        bits
    }

    /// Whether more was taken than there is.
    pub(super) fn overrun(&self) -> bool {
        self.count < self.invented
    }

    /// Where the next marker is looked for.
    pub(super) fn end(&self) -> usize {
        // Whole bytes that were not used lie before `at`; there is no marker among them.
        self.at
    }
}
