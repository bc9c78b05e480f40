//! How image files become pixels: limits, and the choices where programs differ.

use serde::{Deserialize, Serialize};

/// What becomes of transparency.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transparency {
    /// Dropped: the colour under it shows, as in Pillow's `convert("RGB")`, in LLaVA and in transformers.
    #[default]
    Drop,
    /// Laid over white.
    White,
}

/// What becomes of 16-bit grey; 16-bit colours always lose their lower byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Grey16 {
    /// 255 and all above is white, as in Pillow's `convert("RGB")`, in LLaVA and in transformers.
    #[default]
    Clip,
    /// The lower byte is dropped: 65535 is white.
    Scale,
}

/// How image files become pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ImageLoading {
    /// Whether pictures are turned as their EXIF orientation says: upright, as viewers show them. LLaVA's own loader does not
    /// (`Image.open(..).convert("RGB")` without `ImageOps.exif_transpose`).
    pub exif_orientation: bool,
    /// What becomes of transparency.
    pub transparency: Transparency,
    /// What becomes of 16-bit grey.
    pub grey16: Grey16,
    /// Largest width or height, in pixels.
    pub max_side: u32,
    /// Largest width x height, in pixels.
    pub max_pixels: u64,
    /// Largest file, in bytes.
    pub max_bytes: u64,
}

impl Default for ImageLoading {
    /// Pictures upright, else as Pillow shows them; up to the number of pixels at which Pillow warns of a bomb, and 256 MiB.
    fn default() -> Self {
        Self {
            exif_orientation: true,
            transparency: Transparency::default(),
            grey16: Grey16::default(),
            max_side: 65_535,
            max_pixels: 89_478_485,
            max_bytes: 256 << 20,
        }
    }
}
