//! Training heads of the vision tower: patches learn names and colours, the class token learns
//! what is in the picture, and both learn a space shared with words, so that attention- and
//! text-guided pruners have something to go by.

use burn::module::{Module, Param};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;
use serde::{Deserialize, Serialize};

use super::ClipVit;
use crate::config::{ModelConfigError, VitConfig};
use crate::nn::{Embedding, Init, Linear, unit_length};

/// Patches name their place on a lattice of so many cells a side. Naming objects alone teaches a tower to forget where a
/// patch is, and after pruning nothing else tells the language model.
pub const PLACES_PER_SIDE: usize = 3;

/// A vision tower with its training heads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TowerConfig {
    /// The tower; needs a `projection_dim`.
    pub vision: VitConfig,
    /// Object classes, ground not counted.
    pub num_classes: usize,
    /// Colours, none (ground) not counted.
    pub num_colours: usize,
}

/// The heads; none is used after training but the text embedding.
#[derive(Module, Debug)]
pub struct TowerHeads<B: Backend> {
    /// Patch to ground or class, `[d, 1 + classes]`.
    pub patch_name: Linear<B>,
    /// Patch to no colour or colour, `[d, 1 + colours]`.
    pub patch_colour: Linear<B>,
    /// Patch to its place, `[d, PLACES_PER_SIDE^2]`.
    pub patch_place: Linear<B>,
    /// Class token to the classes present, `[d, classes]`.
    pub cls_labels: Linear<B>,
    /// Class names in the shared space, `[classes, p]`; rows are used at unit length.
    pub text_embedding: Embedding<B>,
    /// Log of the factor on cosines, `[1]`.
    pub logit_scale: Param<Tensor<B, 1>>,
}

/// Tower and heads.
#[derive(Module, Debug)]
pub struct TowerModel<B: Backend> {
    /// The tower.
    pub vision: ClipVit<B>,
    /// Its training heads.
    pub heads: TowerHeads<B>,
}

/// What a batch of pictures shows.
#[derive(Clone, Debug)]
pub struct TowerTargets<B: Backend> {
    /// Per patch 0 for ground or 1 + class, `[images * patches]`.
    pub patch_names: Tensor<B, 1, Int>,
    /// Per patch 0 for none or 1 + colour, `[images * patches]`.
    pub patch_colours: Tensor<B, 1, Int>,
    /// 1 for each class present, `[images, classes]`.
    pub present: Tensor<B, 2>,
}

/// Weights of the losses.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TowerLossWeights {
    /// Patch naming.
    pub patch_name: f64,
    /// Patch colour.
    pub patch_colour: f64,
    /// Patch place.
    pub patch_place: f64,
    /// Multi-label loss on the class token.
    pub cls: f64,
    /// Patch and class token against names.
    pub text: f64,
}

impl Default for TowerLossWeights {
    fn default() -> Self {
        Self { patch_name: 1.0, patch_colour: 0.5, patch_place: 0.2, cls: 1.0, text: 0.5 }
    }
}

/// Losses of a batch, each `[1]`.
#[derive(Clone, Debug)]
pub struct TowerLoss<B: Backend> {
    /// The weighted sum.
    pub total: Tensor<B, 1>,
    /// Mean cross entropy of patch names.
    pub patch_name: Tensor<B, 1>,
    /// Mean cross entropy of patch colours.
    pub patch_colour: Tensor<B, 1>,
    /// Mean cross entropy of patch places.
    pub patch_place: Tensor<B, 1>,
    /// Mean binary cross entropy of the classes present.
    pub cls: Tensor<B, 1>,
    /// Mean cross entropy of patches and class token against names.
    pub text: Tensor<B, 1>,
    /// Share of patches named rightly, without gradient.
    pub patch_accuracy: Tensor<B, 1>,
    /// Share of object (not ground) patches named rightly, without gradient.
    pub object_accuracy: Tensor<B, 1>,
}

impl TowerConfig {
    /// Checks that tower and heads can be built.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        self.vision.validate()?;
        crate::config::nonzero(&[
            ("num_classes", self.num_classes),
            ("num_colours", self.num_colours),
            ("vision.projection_dim", self.vision.projection_dim.unwrap_or(0)),
        ])
    }

    /// Builds tower and heads with weights that are a function of the seed alone.
    ///
    /// # Errors
    /// [`ModelConfigError`] if the configuration is invalid.
    pub fn init<B: Backend>(
        &self,
        device: &B::Device,
        seed: u64,
    ) -> Result<TowerModel<B>, ModelConfigError> {
        self.validate()?;
        let init = Init::new(seed, device);
        let heads = init.at("heads");
        let (d, p) = (self.vision.hidden_size, self.vision.projection_dim.unwrap_or(1));
        let linear = |name: &str, out: usize| Linear::init(&heads.at(name), d, out, true, 1.0);
        Ok(TowerModel {
            vision: self.vision.init(&init.at("vision")),
            heads: TowerHeads {
                patch_name: linear("patch_name", 1 + self.num_classes),
                patch_colour: linear("patch_colour", 1 + self.num_colours),
                patch_place: linear("patch_place", PLACES_PER_SIDE * PLACES_PER_SIDE),
                cls_labels: linear("cls_labels", self.num_classes),
                text_embedding: Embedding::init(
                    &heads.at("text_embedding"),
                    self.num_classes,
                    p,
                    (p as f64).powf(-0.5),
                ),
                // CLIP starts at 1 / 0.07.
                logit_scale: heads.at("logit_scale").constant([1], (1.0f64 / 0.07).ln()),
            },
        })
    }
}

impl<B: Backend> TowerTargets<B> {
    /// From host labels: per image and patch, 0 or 1 + class (and colour).
    pub fn new(
        patch_names: &[Vec<usize>],
        patch_colours: &[Vec<usize>],
        num_classes: usize,
        device: &B::Device,
    ) -> Self {
        let flat = |rows: &[Vec<usize>]| {
            let values: Vec<i64> = rows.iter().flatten().map(|value| *value as i64).collect();
            let count = values.len();
            Tensor::from_data(TensorData::new(values, [count]), device)
        };
        let mut present = vec![0f32; patch_names.len() * num_classes];
        for (image, names) in patch_names.iter().enumerate() {
            for class in names.iter().filter_map(|name| name.checked_sub(1)) {
                if class < num_classes {
                    present[image * num_classes + class] = 1.0;
                }
            }
        }
        let present = TensorData::new(present, [patch_names.len(), num_classes]);
        Self {
            patch_names: flat(patch_names),
            patch_colours: flat(patch_colours),
            present: Tensor::from_data(present, device),
        }
    }
}

impl<B: Backend> TowerModel<B> {
    /// Class names in the shared space at unit length, `[classes, p]`.
    pub fn text_features(&self) -> Tensor<B, 2> {
        unit_length(self.heads.text_embedding.weight.val())
    }

    /// All losses of `pixel_values` `[images, 3, side, side]`.
    ///
    /// Patch losses are taken at the selected hidden state, which is what the language model will
    /// get. The class token is supervised there *and* at the last layer: were it only at the last,
    /// that layer could do all the pooling and the selected layer's attention would learn nothing.
    pub fn loss(
        &self,
        pixel_values: Tensor<B, 4>,
        targets: &TowerTargets<B>,
        weights: TowerLossWeights,
    ) -> TowerLoss<B> {
        let device = pixel_values.device();
        let hidden = self.vision.hidden(pixel_values);
        let [images, s, d] = hidden.selected.dims();
        let selected = self.vision.post_layernorm.forward(hidden.selected.clone());
        let last = self.vision.post_layernorm.forward(hidden.last);
        let patches = selected.clone().narrow(1, 1, s - 1).reshape([images * (s - 1), d]);
        let classes = [selected, last].map(|x| x.narrow(1, 0, 1).reshape([images, d]));

        let name_logits = self.heads.patch_name.forward(patches.clone()); // [images * n, 1 + c]
        let named = name_logits.clone().argmax(1).reshape([images * (s - 1)]);
        let hits = named.equal(targets.patch_names.clone()).float();
        let is_object = targets.patch_names.clone().greater_elem(0).float(); // [images * n]
        let objects = is_object.clone().sum().clamp_min(1.0);
        let patch_name = cross_entropy(name_logits, targets.patch_names.clone()).mean();
        let colour_logits = self.heads.patch_colour.forward(patches.clone());
        let patch_colour = cross_entropy(colour_logits, targets.patch_colours.clone()).mean();

        let places = self.patch_places(images, &device);
        let patch_place =
            cross_entropy(self.heads.patch_place.forward(patches.clone()), places).mean();

        let [selected_cls, last_cls] = classes;
        let bce = |cls: Tensor<B, 2>| {
            binary_cross_entropy(self.heads.cls_labels.forward(cls), targets.present.clone())
        };
        let cls = (bce(selected_cls) + bce(last_cls.clone())).mul_scalar(0.5);

        let text = self.text_loss(patches, last_cls, targets, &is_object, &objects);
        TowerLoss {
            total: patch_name.clone().mul_scalar(weights.patch_name)
                + patch_colour.clone().mul_scalar(weights.patch_colour)
                + patch_place.clone().mul_scalar(weights.patch_place)
                + cls.clone().mul_scalar(weights.cls)
                + text.clone().mul_scalar(weights.text),
            patch_name,
            patch_colour,
            patch_place,
            cls,
            text,
            object_accuracy: ((hits.clone() * is_object).sum() / objects).detach(),
            patch_accuracy: hits.mean().detach(),
        }
    }

    /// The place of each patch of `images` pictures, row-major, `[images * patches]`.
    fn patch_places(&self, images: usize, device: &B::Device) -> Tensor<B, 1, Int> {
        let grid = self.vision.config.grid();
        let side = |i: usize| i * PLACES_PER_SIDE / grid;
        let places: Vec<i64> = (0..grid * grid)
            .map(|patch| (side(patch / grid) * PLACES_PER_SIDE + side(patch % grid)) as i64)
            .collect();
        let count = images * places.len();
        Tensor::from_data(TensorData::new(places.repeat(images), [count]), device)
    }

    /// Object patches against the names by cross entropy; the class token against a uniform
    /// distribution over the names present. Inputs have passed `post_layernorm`.
    fn text_loss(
        &self,
        patches: Tensor<B, 2>,
        cls: Tensor<B, 2>,
        targets: &TowerTargets<B>,
        is_object: &Tensor<B, 1>,
        objects: &Tensor<B, 1>,
    ) -> Tensor<B, 1> {
        let Some(projection) = &self.vision.visual_projection else {
            return objects.zeros_like();
        };
        let scale = self.heads.logit_scale.val().clamp_max(100f64.ln()).exp().unsqueeze::<2>();
        let names = self.text_features().transpose(); // [p, classes]
        let logits = |x: Tensor<B, 2>| {
            unit_length(projection.forward(x)).matmul(names.clone()) * scale.clone()
        };
        // Ground patches have no name; their rows are computed and weighted 0.
        let wanted = (targets.patch_names.clone() - 1).clamp_min(0);
        let per_patch = cross_entropy(logits(patches), wanted) * is_object.clone();
        let counts = targets.present.clone().sum_dim(1); // [images, 1]
        let wanted = targets.present.clone() / counts.clone().clamp_min(1.0);
        let shown = counts.clamp_max(1.0).sum().clamp_min(1.0);
        let per_image = (log_softmax(logits(cls), 1) * wanted).sum().neg();
        per_patch.sum() / objects.clone() + per_image / shown
    }
}

/// `[rows, classes], [rows] -> [rows]`.
fn cross_entropy<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 1, Int>) -> Tensor<B, 1> {
    let rows = targets.dims()[0];
    log_softmax(logits, 1).gather(1, targets.unsqueeze_dim::<2>(1)).reshape([rows]).neg()
}

/// Mean over all elements, from logits, stable for large ones.
fn binary_cross_entropy<B: Backend>(logits: Tensor<B, 2>, targets: Tensor<B, 2>) -> Tensor<B, 1> {
    let softplus = logits.clone().abs().neg().exp().log1p();
    (logits.clone().clamp_min(0.0) - logits * targets + softplus).mean()
}
