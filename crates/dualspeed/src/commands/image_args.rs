//! Arguments that say how image files become pixels.

use clap::Args;
use dualspeed_data::ImageLoading;

use super::checkpoint_args::parse_name;

/// How image files become pixels; shared by the commands that read some.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// Whether pictures are turned as their EXIF orientation says; by default as the run does, else true. LLaVA's own
    /// loader does not.
    #[arg(long, value_name = "BOOL")]
    exif_orientation: Option<bool>,
    /// What becomes of transparency: drop (the colour under it shows, as in LLaVA) or white.
    #[arg(long)]
    transparency: Option<String>,
    /// What becomes of 16-bit grey: clip (255 is white, as in LLaVA) or scale.
    #[arg(long)]
    grey16: Option<String>,
    /// Refuse pictures wider or higher than this.
    #[arg(long, value_name = "PIXELS")]
    max_side: Option<u32>,
    /// Refuse pictures of more pixels than this.
    #[arg(long, value_name = "PIXELS")]
    max_pixels: Option<u64>,
    /// Refuse picture files larger than this.
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
}

impl ImageArgs {
    /// What is said here, over what is already known.
    ///
    /// # Errors
    /// If a name is not known.
    pub(crate) fn apply(&self, loading: ImageLoading) -> anyhow::Result<ImageLoading> {
        Ok(ImageLoading {
            exif_orientation: self.exif_orientation.unwrap_or(loading.exif_orientation),
            transparency: parse_name("transparency", self.transparency.as_ref())?
                .unwrap_or(loading.transparency),
            grey16: parse_name("grey16", self.grey16.as_ref())?.unwrap_or(loading.grey16),
            max_side: self.max_side.unwrap_or(loading.max_side),
            max_pixels: self.max_pixels.unwrap_or(loading.max_pixels),
            max_bytes: self.max_bytes.unwrap_or(loading.max_bytes),
        })
    }
}
