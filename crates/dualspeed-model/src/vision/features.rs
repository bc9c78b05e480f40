//! Features of a vision tower by name, and which of them are wanted.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::BitOr;

use burn::tensor::Tensor;
use dualspeed_ops::Backend;

/// The selected hidden state, `[images, n, d_v]`: what the projector reads. Every tower makes it.
pub const HIDDEN: &str = "hidden";
/// The class token's attention over the patches in the layer that outputs the hidden state, `softmax(q_cls K^T / sqrt(d))`
/// over the class token and the patches without the class token's own share: `[images, n, heads]`. Where a tower has no class
/// token (SigLIP), what stands for it: the attention that each patch receives there, mean over all patches.
pub const CLS_ATTENTION: &str = "cls_attention";
/// Mean over heads of that layer's keys, `[images, n, d_head]`.
pub const KEYS: &str = "keys";
/// Patches in the space shared with text, unit vectors, `[images, n, p]`.
pub const PATCH_TEXT: &str = "patch_text";
/// The class token's hidden state, `[images, 1, d_v]`.
pub const CLS_HIDDEN: &str = "cls_hidden";
/// The class token's attention in the tower's last layer with the heads not split (one softmax over full-width products
/// divided by `sqrt(d_v)`), `[images, n, 1]`.
pub const LAST_CLS_ATTENTION: &str = "last_cls_attention";
/// Keys of the tower's last layer, all heads side by side, `[images, n, d_v]`.
pub const LAST_KEYS: &str = "last_keys";
/// The question in the space shared with text. No tower makes it: a [`TextTower`](crate::pruner::TextTower) does.
pub const TEXT: &str = "text";
/// The question's token embeddings. No tower makes them: the language model has them.
pub const QUESTION: &str = "question";

/// A set of features by name; nothing that is not in it is computed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs(BTreeSet<Cow<'static, str>>);

impl Needs {
    /// Nothing beyond the hidden state.
    pub fn none() -> Self {
        Self::default()
    }

    /// These features, e.g. `Needs::of([CLS_ATTENTION, KEYS])`; a name of your own is as good.
    pub fn of(names: impl IntoIterator<Item = impl Into<Cow<'static, str>>>) -> Self {
        Self(names.into_iter().map(Into::into).collect())
    }

    /// Whether a feature is wanted.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains(name)
    }

    /// The same without a feature.
    pub fn without(mut self, name: &str) -> Self {
        self.0.remove(name);
        self
    }

    /// The names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(AsRef::as_ref)
    }

    /// Only what a vision tower makes: the question is no feature of an image.
    pub fn of_tower(&self) -> Self {
        self.clone().without(TEXT).without(QUESTION)
    }
}

impl BitOr for Needs {
    type Output = Self;

    fn bitor(mut self, other: Self) -> Self {
        self.0.extend(other.0);
        self
    }
}

/// The features of a batch of images (or tiles of images) by name.
///
/// A feature of every token is `[images, n, width]` with the tokens in the order of the hidden state's; a feature of the
/// whole image is `[images, 1, width]`. Pruning, tiles and caches need to know no more of a feature than that.
#[derive(Clone, Debug)]
pub struct VisionFeatures<B: Backend> {
    hidden: Tensor<B, 3>,
    others: BTreeMap<String, Tensor<B, 3>>,
}

impl<B: Backend> VisionFeatures<B> {
    /// Features that consist of the hidden state alone, `[images, n, d_v]`.
    pub fn new(hidden: Tensor<B, 3>) -> Self {
        Self { hidden, others: BTreeMap::new() }
    }

    /// The same with one more feature, `[images, n, width]` or `[images, 1, width]`.
    pub fn with(mut self, name: impl Into<String>, feature: Tensor<B, 3>) -> Self {
        let name = name.into();
        if name == HIDDEN {
            self.hidden = feature;
        } else {
            self.others.insert(name, feature);
        }
        self
    }

    /// The same with one more feature, where there is one.
    pub fn with_some(self, name: &str, feature: Option<Tensor<B, 3>>) -> Self {
        match feature {
            Some(feature) => self.with(name, feature),
            None => self,
        }
    }

    /// The hidden state, `[images, n, d_v]`.
    pub fn hidden(&self) -> Tensor<B, 3> {
        self.hidden.clone()
    }

    /// A feature by name.
    pub fn get(&self, name: &str) -> Option<Tensor<B, 3>> {
        if name == HIDDEN { Some(self.hidden()) } else { self.others.get(name).cloned() }
    }

    /// All features by name, the hidden state first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor<B, 3>)> {
        let others = self.others.iter().map(|(name, feature)| (name.as_str(), feature));
        std::iter::once((HIDDEN, &self.hidden)).chain(others)
    }

    /// The same change to every feature; the function is given its name.
    pub fn map(self, f: impl Fn(&str, Tensor<B, 3>) -> Tensor<B, 3>) -> Self {
        let hidden = f(HIDDEN, self.hidden);
        let others = self.others.into_iter().map(|(name, feature)| {
            let feature = f(&name, feature);
            (name, feature)
        });
        Self { hidden, others: others.collect() }
    }

    /// Cut off from any gradient.
    pub fn detach(self) -> Self {
        self.map(|_, feature| feature.detach())
    }

    /// Number of images or tiles.
    pub fn len(&self) -> usize {
        self.hidden.dims()[0]
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Tokens per image or tile.
    pub fn num_tokens(&self) -> usize {
        self.hidden.dims()[1]
    }

    /// The first feature of `needs` that is not there, by name.
    pub fn missing(&self, needs: &Needs) -> Option<String> {
        let missing = |name: &&str| *name != HIDDEN && !self.others.contains_key(*name);
        needs.of_tower().names().find(missing).map(str::to_owned)
    }
}
