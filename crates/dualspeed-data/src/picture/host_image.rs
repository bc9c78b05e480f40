//! Preprocessed pixels on the host.

use std::fmt;

/// A preprocessed image: the pixels that a vision tower takes.
#[derive(Clone, PartialEq)]
pub struct HostImage {
    /// Hash of the processed pixels and the normalisation: equal pixels have equal keys. Feature caches go by it.
    pub key: u64,
    /// Side of the square, in pixels.
    pub size: usize,
    /// `[3, size, size]` row-major, normalised. Empty where the pixels were dropped on purpose, because the tower's
    /// features of this image are cached.
    pub pixels: Vec<f32>,
}

impl fmt::Debug for HostImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { key, size, pixels } = self;
        write!(f, "HostImage {{ key: {key:016x}, size: {size}, {} values }}", pixels.len())
    }
}
