//! Images: loading with limits, resampling, normalisation.

mod config_file;
mod load;
mod process;
pub mod resample;
mod tiles;

pub use config_file::{ProcessorFile, read_processor};
pub use load::{ImageLimits, LoadedImage, decode_image, load_image};
pub use process::{FitMode, ImageProcessor, preprocess_bytes, preprocess_image};
pub use tiles::{TileConfig, TiledImage};
