//! What a vision encoder is to the rest of the model.

use std::ops::BitOr;

use burn::tensor::Tensor;
use dualspeed_ops::Backend;

/// Which features beyond the hidden state are wanted; nothing else is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// Attention of the class token over the patches.
    pub cls_attention: bool,
    /// Mean over heads of the attention keys.
    pub keys: bool,
    /// Patches in the space shared with text.
    pub patch_text: bool,
}

impl BitOr for Needs {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            cls_attention: self.cls_attention | other.cls_attention,
            keys: self.keys | other.keys,
            patch_text: self.patch_text | other.patch_text,
        }
    }
}

/// Sizes a vision tower fixes for the rest of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Visual tokens per image.
    pub num_patches: usize,
    /// Width of the features.
    pub hidden: usize,
    /// Side of the input, in pixels.
    pub image_size: usize,
}

/// Output of a vision tower; can also be filled from a cache of host features.
#[derive(Clone, Debug)]
pub struct VisionFeatures<B: Backend> {
    /// Selected hidden state, `[images, n, d_v]`.
    pub hidden: Tensor<B, 3>,
    /// `softmax(q_cls K^T / sqrt(d))` over the class token and the patches, of the layer that
    /// outputs `hidden`; the class token's own column is dropped with its row: `[images, heads, n]`.
    pub cls_attention: Option<Tensor<B, 3>>,
    /// Mean over heads of that layer's keys, `[images, n, d_head]`.
    pub keys: Option<Tensor<B, 3>>,
    /// Unit vectors in the space shared with text, `[images, n, p]`.
    pub patch_text: Option<Tensor<B, 3>>,
}

impl<B: Backend> VisionFeatures<B> {
    /// Features that consist of the hidden state alone.
    pub fn from_hidden(hidden: Tensor<B, 3>) -> Self {
        Self { hidden, cls_attention: None, keys: None, patch_text: None }
    }

    /// Cut off from any gradient.
    pub fn detach(self) -> Self {
        Self {
            hidden: self.hidden.detach(),
            cls_attention: self.cls_attention.map(Tensor::detach),
            keys: self.keys.map(Tensor::detach),
            patch_text: self.patch_text.map(Tensor::detach),
        }
    }
}

/// A vision encoder.
pub trait VisionTower<B: Backend> {
    /// The sizes of its features.
    fn geometry(&self) -> Geometry;

    /// Features of `pixel_values` `[images, 3, side, side]`, normalised as the tower was trained.
    fn features(&self, pixel_values: Tensor<B, 4>, needs: Needs) -> VisionFeatures<B>;
}
