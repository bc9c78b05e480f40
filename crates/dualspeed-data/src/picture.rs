//! Images: loading with limits, resampling, normalisation.

mod load;
mod process;
pub mod resample;

pub use load::{ImageLimits, LoadedImage, decode_image, load_image};
pub use process::{FitMode, ImageProcessor, preprocess_bytes, preprocess_image};
