//! Parts of CLIP checkpoints that LLaVA's leave out and text-guided pruners need.

mod text_tower;
mod visual_projection;

pub use text_tower::ClipTextTower;
pub use visual_projection::with_visual_projection;
