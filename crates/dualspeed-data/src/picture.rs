//! Images: loading with limits, resampling, normalisation, tiles.

pub mod decoded;
mod file;
mod host_image;
mod jpeg;
mod load;
mod loading;
mod png;
mod processor;
mod processor_file;
pub mod resample;
mod resize;
mod size;
mod tiles;
pub mod tiling;

pub use decoded::DecodedImages;
pub use file::{check_image_file, printable, read_image_file};
pub use host_image::HostImage;
pub use load::{LoadedImage, decode_image, load_image};
pub use loading::{Grey16, ImageLoading, Transparency};
pub use processor::{FitMode, ImageProcessor, preprocess_bytes, preprocess_image};
pub use processor_file::{ProcessorFile, read_processor};
pub use resize::{resize_padded, resize_rgb};
pub use size::image_size;
pub use tiles::{TileConfig, TiledImage};
pub use tiling::Tiling;
