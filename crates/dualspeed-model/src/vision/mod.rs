//! Vision towers: the trait, one file per encoder, and a registry of them by name.
//!
//! | module | concept |
//! |---|---|
//! | this one | [`VisionTower`], what an encoder is to the rest of the model |
//! | [`features`] | [`VisionFeatures`] by name, [`Needs`] |
//! | [`clip_vit`], [`efficientnet`] | encoders |
//! | [`custom`] | an encoder of another crate, with its parameters by name |
//! | [`tower`] | any of them, as one module; the registry |
//! | [`pretraining`] | heads and losses that train the small ViT |
//! | [`clip_text`] | CLIP's text transformer |

mod activation;
pub mod clip_text;
pub mod clip_vit;
pub mod custom;
pub mod efficientnet;
mod encoder;
pub mod features;
pub mod pretraining;
pub mod tower;

pub use clip_vit::ClipVit;
pub use custom::{CustomTower, TowerFactory, TowerRegistry};
pub use efficientnet::EfficientNet;
pub use encoder::VisionTower;
pub use features::{Needs, VisionFeatures};
pub use tower::Tower;
