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
    /// The class token's hidden state.
    pub cls_hidden: bool,
    /// The class token's attention and the keys of the tower's last layer, heads not split.
    pub last_layer: bool,
    /// The question in the space shared with text; no tower feature, see
    /// [`TextTower`](crate::text_tower::TextTower).
    pub text: bool,
    /// The question's token embeddings; no tower feature, the language model has them.
    pub question: bool,
}

impl BitOr for Needs {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self {
            cls_attention: self.cls_attention | other.cls_attention,
            keys: self.keys | other.keys,
            patch_text: self.patch_text | other.patch_text,
            cls_hidden: self.cls_hidden | other.cls_hidden,
            last_layer: self.last_layer | other.last_layer,
            text: self.text | other.text,
            question: self.question | other.question,
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
    /// The class token's hidden state, `[images, 1, d_v]`.
    pub cls_hidden: Option<Tensor<B, 3>>,
    /// As `cls_attention`, of the last layer of the tower with the heads not split (one softmax over
    /// full-width products divided by `sqrt(d_v)`): `[images, 1, n]`.
    pub last_cls_attention: Option<Tensor<B, 3>>,
    /// Keys of the last layer, all heads side by side, `[images, n, d_v]`.
    pub last_keys: Option<Tensor<B, 3>>,
}

impl<B: Backend> VisionFeatures<B> {
    /// Features that consist of the hidden state alone.
    pub fn from_hidden(hidden: Tensor<B, 3>) -> Self {
        Self {
            hidden,
            cls_attention: None,
            keys: None,
            patch_text: None,
            cls_hidden: None,
            last_cls_attention: None,
            last_keys: None,
        }
    }

    /// The same change to every feature.
    pub fn map(self, f: impl Fn(Tensor<B, 3>) -> Tensor<B, 3>) -> Self {
        Self {
            hidden: f(self.hidden),
            cls_attention: self.cls_attention.map(&f),
            keys: self.keys.map(&f),
            patch_text: self.patch_text.map(&f),
            cls_hidden: self.cls_hidden.map(&f),
            last_cls_attention: self.last_cls_attention.map(&f),
            last_keys: self.last_keys.map(&f),
        }
    }

    /// Cut off from any gradient.
    pub fn detach(self) -> Self {
        self.map(Tensor::detach)
    }

    /// The features by name, where they are there; `hidden` first.
    pub fn named(&self) -> Vec<(&'static str, Tensor<B, 3>)> {
        let optional = [
            ("cls_attention", &self.cls_attention),
            ("keys", &self.keys),
            ("patch_text", &self.patch_text),
            ("cls_hidden", &self.cls_hidden),
            ("last_cls_attention", &self.last_cls_attention),
            ("last_keys", &self.last_keys),
        ];
        let there = optional.into_iter().filter_map(|(name, x)| Some((name, x.clone()?)));
        [("hidden", self.hidden.clone())].into_iter().chain(there).collect()
    }

    /// The first feature of `needs` that is not there, by name.
    pub fn missing(&self, needs: Needs) -> Option<&'static str> {
        [
            (needs.cls_attention && self.cls_attention.is_none(), "cls_attention"),
            (needs.keys && self.keys.is_none(), "keys"),
            (needs.patch_text && self.patch_text.is_none(), "patch_text"),
            (needs.cls_hidden && self.cls_hidden.is_none(), "cls_hidden"),
            (needs.last_layer && self.last_cls_attention.is_none(), "last_cls_attention"),
            (needs.last_layer && self.last_keys.is_none(), "last_keys"),
        ]
        .into_iter()
        .find_map(|(missing, name)| missing.then_some(name))
    }
}

/// A vision encoder.
pub trait VisionTower<B: Backend> {
    /// The sizes of its features.
    fn geometry(&self) -> Geometry;

    /// Features of `pixel_values` `[images, 3, side, side]`, normalised as the tower was trained. What
    /// `needs` names and the tower cannot make stays `None`.
    fn features(&self, pixel_values: Tensor<B, 4>, needs: Needs) -> VisionFeatures<B>;
}
