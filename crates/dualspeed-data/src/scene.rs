//! Generated scenes: a few emoji on coloured cards, on a plain or textured background, with questions about them. The
//! answer to most questions sits in a few patches of the picture and most patches are redundant, which is the
//! situation token pruning is about.

mod atlas;
mod colour;
mod config;
mod labels;
mod layout;
mod questions;
mod render;
mod source;
mod words;

pub use atlas::{Atlas, Class, Vendor};
pub use colour::Colour;
pub use config::{SceneConfig, Split};
pub use labels::{patch_colours, patch_labels};
pub use layout::{Background, Bounds, Scene, SceneObject};
pub use questions::Question;
pub use render::render;
pub use source::SceneSource;
pub use words::{place_name, scene_tokenizer};
