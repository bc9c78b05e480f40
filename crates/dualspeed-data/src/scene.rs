//! Generated scenes: a few emoji on coloured cards, on plain or textured ground, with questions about them. The
//! answer to most questions sits in a few patches of the picture and most patches are redundant, which is the
//! situation token pruning is about.

mod config;
mod labels;
mod layout;
mod questions;
mod render;
mod source;
mod words;

pub use config::{SceneConfig, Split};
pub use labels::{patch_colours, patch_labels};
pub use layout::{Bounds, Ground, Placed, Scene};
pub use questions::Question;
pub use render::render;
pub use source::SceneSource;
pub use words::{Colour, place_name, scene_tokenizer};
