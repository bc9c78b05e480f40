//! Images: loading with limits, resampling, normalisation, tiles.

pub mod decoded;
mod host_image;
mod load;
mod processor;
mod processor_file;
pub mod resample;
mod size;
mod tiles;
pub mod tiling;

pub use decoded::DecodedImages;
pub use host_image::HostImage;
pub use load::{ImageLimits, LoadedImage, decode_image, load_image};
pub use processor::{FitMode, ImageProcessor, preprocess_bytes, preprocess_image};
pub use processor_file::{ProcessorFile, read_processor};
pub use size::image_size;
pub use tiles::{TileConfig, TiledImage};
pub use tiling::Tiling;
