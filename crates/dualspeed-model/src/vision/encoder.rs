//! What a vision encoder is to the rest of the model.

use burn::tensor::Tensor;
use dualspeed_ops::Backend;

use super::features::{Needs, VisionFeatures};
use crate::config::VisionGeometry;

/// A vision encoder.
pub trait VisionTower<B: Backend> {
    /// The sizes it fixes for the rest of the model.
    fn geometry(&self) -> VisionGeometry;

    /// Features of `pixel_values` `[images, 3, side, side]`, normalised as the tower was trained. What `needs` names and the
    /// tower cannot make is left out.
    fn features(&self, pixel_values: Tensor<B, 4>, needs: &Needs) -> VisionFeatures<B>;
}
