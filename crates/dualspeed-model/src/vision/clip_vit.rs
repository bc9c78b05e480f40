//! The vision transformer of CLIP and SigLIP: pre-norm, learned positions, a class token or none.
//!
//! Only what is asked for is computed: the layers up to the selected hidden state, and of the
//! attention map only the class token's row where there is one.

use burn::module::{Module, Param, ParamId};
use burn::tensor::activation::softmax;
use burn::tensor::{FloatDType, Tensor};
use dualspeed_ops::{AttentionSpec, Backend};

use super::VisionTower;
use super::activation::activate;
use super::features::{
    CLS_ATTENTION, CLS_HIDDEN, KEYS, LAST_CLS_ATTENTION, LAST_KEYS, Needs, PATCH_TEXT,
    VisionFeatures,
};
use crate::config::{SelectFeature, VisionGeometry, VitConfig, VitFamily};
use crate::nn::heads::{merge_heads, split_heads};
use crate::nn::{Embedding, Init, LayerNorm, Linear, cast, unit_length};
use dualspeed_core::rng::hash_str;

/// The convolution that makes patches.
#[derive(Module, Debug)]
pub struct PatchEmbedding<B: Backend> {
    /// `[d, 3, patch, patch]`, as in the checkpoints.
    pub weight: Param<Tensor<B, 4>>,
    /// `[d]`; SigLIP's.
    pub bias: Option<Param<Tensor<B, 1>>>,
}

/// Patches, class token and positions.
#[derive(Module, Debug)]
pub struct VitEmbeddings<B: Backend> {
    /// `[d]`; CLIP's.
    pub class_embedding: Option<Param<Tensor<B, 1>>>,
    /// Patch convolution.
    pub patch_embedding: PatchEmbedding<B>,
    /// `[positions, d]`, the class token's first where there is one.
    pub position_embedding: Embedding<B>,
}

/// Self-attention of the tower, all projections with bias.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct VitAttention<B: Backend> {
    pub q_proj: Linear<B>,
    pub k_proj: Linear<B>,
    pub v_proj: Linear<B>,
    pub out_proj: Linear<B>,
}

/// MLP of the tower.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct VitMlp<B: Backend> {
    pub fc1: Linear<B>,
    pub fc2: Linear<B>,
}

/// One pre-norm block.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct VitLayer<B: Backend> {
    pub self_attn: VitAttention<B>,
    pub layer_norm1: LayerNorm<B>,
    pub mlp: VitMlp<B>,
    pub layer_norm2: LayerNorm<B>,
}

/// The stack of blocks.
#[derive(Module, Debug)]
pub struct VitEncoder<B: Backend> {
    /// Blocks, first to last.
    pub layers: Vec<VitLayer<B>>,
}

/// The vision tower; field names are those of Hugging Face's `CLIPVisionModelWithProjection` and `SiglipVisionModel`.
#[derive(Module, Debug)]
pub struct ClipVit<B: Backend> {
    /// Patches, class token and positions.
    pub embeddings: VitEmbeddings<B>,
    /// The norm before the blocks; the spelling is the checkpoints'. CLIP's.
    pub pre_layrnorm: Option<LayerNorm<B>>,
    /// The blocks.
    pub encoder: VitEncoder<B>,
    /// The norm before heads and `visual_projection`; the selected features do not pass it.
    pub post_layernorm: LayerNorm<B>,
    /// Into the space shared with text.
    pub visual_projection: Option<Linear<B>>,
    /// The configuration this was built from.
    pub config: VitConfig,
}

/// What a block shows of its attention.
struct Probe<B: Backend> {
    received_attention: Option<Tensor<B, 3>>,
    keys: Option<Tensor<B, 3>>,
}

/// Hidden states with the class token, if any, in front, as tower training needs them.
#[derive(Debug)]
pub struct VitHidden<B: Backend> {
    /// The selected hidden state, `[images, positions, d]`.
    pub selected: Tensor<B, 3>,
    /// The last layer's output, `[images, positions, d]`.
    pub last: Tensor<B, 3>,
}

impl VitConfig {
    /// A tower with initial weights that are a function of `init`'s seed and path.
    pub fn init<B: Backend>(&self, init: &Init<'_, B>) -> ClipVit<B> {
        let (d, eps) = (self.hidden_size, self.layer_norm_eps);
        let patch = self.patch_size;
        let fan_in = (3 * patch * patch) as f64;
        let embeddings = init.at("embeddings");
        let clip = self.family == VitFamily::Clip;
        let layer = |index: usize| {
            let at = init.at("encoder.layers").at(index);
            // Residual branches start small, so that depth does not blow up the stream.
            let branch = 1.0 / (2.0 * self.num_hidden_layers as f64).sqrt();
            let attn = at.at("self_attn");
            VitLayer {
                self_attn: VitAttention {
                    q_proj: Linear::init(&attn.at("q_proj"), d, d, true, 1.0),
                    k_proj: Linear::init(&attn.at("k_proj"), d, d, true, 1.0),
                    v_proj: Linear::init(&attn.at("v_proj"), d, d, true, 1.0),
                    out_proj: Linear::init(&attn.at("out_proj"), d, d, true, branch),
                },
                layer_norm1: LayerNorm::init(&at.at("layer_norm1"), d, eps),
                mlp: VitMlp {
                    fc1: Linear::init(&at.at("mlp.fc1"), d, self.intermediate_size, true, 1.0),
                    fc2: Linear::init(&at.at("mlp.fc2"), self.intermediate_size, d, true, branch),
                },
                layer_norm2: LayerNorm::init(&at.at("layer_norm2"), d, eps),
            }
        };
        ClipVit {
            embeddings: VitEmbeddings {
                class_embedding: clip.then(|| embeddings.at("class_embedding").normal([d], 0.02)),
                patch_embedding: PatchEmbedding {
                    weight: embeddings
                        .at("patch_embedding.weight")
                        .normal([d, 3, patch, patch], fan_in.powf(-0.5)),
                    bias: (!clip).then(|| embeddings.at("patch_embedding.bias").normal([d], 0.0)),
                },
                position_embedding: Embedding::init(
                    &embeddings.at("position_embedding"),
                    self.num_positions(),
                    d,
                    0.02,
                ),
            },
            pre_layrnorm: clip.then(|| LayerNorm::init(&init.at("pre_layrnorm"), d, eps)),
            encoder: VitEncoder { layers: (0..self.num_hidden_layers).map(layer).collect() },
            post_layernorm: LayerNorm::init(&init.at("post_layernorm"), d, eps),
            visual_projection: self
                .projection_dim
                .map(|p| Linear::init(&init.at("visual_projection"), d, p, false, 1.0)),
            config: self.clone(),
        }
    }
}

impl<B: Backend> VitEmbeddings<B> {
    /// `[images, 3, side, side] -> [images, positions, d]`.
    fn forward(&self, pixel_values: Tensor<B, 4>) -> Tensor<B, 3> {
        let [images, channels, side, _] = pixel_values.dims();
        let weight = self.patch_embedding.weight.val(); // [d, 3, patch, patch]
        // The tower computes in the type of its weights.
        let pixel_values = cast(pixel_values, weight.dtype().into());
        let [d, _, patch, _] = weight.dims();
        let grid = side / patch;
        let width = channels * patch * patch;
        // A side that is no multiple of the patch loses its rest, as in a convolution without padding.
        let patches = pixel_values
            .narrow(2, 0, grid * patch)
            .narrow(3, 0, grid * patch)
            .reshape([images, channels, grid, patch, grid, patch])
            .permute([0, 2, 4, 1, 3, 5]) // [images, row, column, 3, patch, patch]
            .reshape([images * grid * grid, width]);
        // A convolution whose stride is its size is a product.
        let weight = weight.reshape([d, width]).transpose();
        let bias = self.patch_embedding.bias.as_ref().map(Param::val);
        let patches =
            dualspeed_ops::linear(patches, weight, bias).reshape([images, grid * grid, d]);
        let positions = self.position_embedding.weight.val().unsqueeze::<3>(); // [1, positions, d]
        let tokens = match &self.class_embedding {
            Some(class) => {
                let class = class.val().reshape([1, 1, d]).expand([images, 1, d]);
                Tensor::cat(vec![class, patches], 1)
            }
            None => patches,
        };
        tokens + positions // [images, positions, d]
    }
}

impl<B: Backend> VitLayer<B> {
    /// One block on `[images * s, d]`.
    fn forward(
        &self,
        x: Tensor<B, 2>,
        images: usize,
        config: &VitConfig,
        needs: &Needs,
    ) -> (Tensor<B, 2>, Probe<B>) {
        let heads = config.num_attention_heads;
        let normed = self.layer_norm1.forward(x.clone());
        let q = split_heads(self.self_attn.q_proj.forward(normed.clone()), images, heads);
        let k = split_heads(self.self_attn.k_proj.forward(normed.clone()), images, heads);
        let v = split_heads(self.self_attn.v_proj.forward(normed), images, heads);
        let probe = Probe {
            received_attention: needs.has(CLS_ATTENTION).then(|| match config.family {
                VitFamily::Clip => cls_attention(q.clone(), k.clone()),
                VitFamily::Siglip => mean_received_attention(q.clone(), k.clone()),
            }),
            keys: needs.has(KEYS).then(|| {
                let [_, _, s, d] = k.dims();
                k.clone().mean_dim(1).reshape([images, s, d])
            }),
        };
        let attended = dualspeed_ops::attention(q, k, v, &AttentionSpec::default());
        let x = self.self_attn.out_proj.forward_onto(merge_heads(attended), x);
        let up = self.mlp.fc1.forward(self.layer_norm2.forward(x.clone()));
        let activated = activate(config.hidden_act, up);
        (self.mlp.fc2.forward_onto(activated, x), probe)
    }

    /// The class token's attention over all tokens with the heads not split, `[images, 1, s]`, and the
    /// keys `[images, s, d]`, from the layer's input `[images * s, d]`.
    fn full_width_attention(&self, x: Tensor<B, 2>, images: usize) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let [rows, d] = x.dims();
        let normed = self.layer_norm1.forward(x).reshape([images, rows / images, d]);
        let q_cls = self.self_attn.q_proj.forward(normed.clone().narrow(1, 0, 1));
        let k = self.self_attn.k_proj.forward(normed);
        let logits = (q_cls / (d as f64).sqrt()).matmul(k.clone().swap_dims(1, 2));
        (softmax(logits, 2), k)
    }
}

/// The class token's attention over all tokens, `[images, heads, s]`: one row of the map, not all.
fn cls_attention<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>) -> Tensor<B, 3> {
    let [images, heads, s, d] = k.dims();
    let q_cls = q.narrow(2, 0, 1) / (d as f64).sqrt(); // [images, heads, 1, d]
    softmax(q_cls.matmul(k.swap_dims(2, 3)), 3).reshape([images, heads, s])
}

/// The attention that each token receives, mean over all that attend, `[images, heads, s]`: what stands for the class token's
/// attention where there is none. Image by image, so that one map at a time is held.
fn mean_received_attention<B: Backend>(q: Tensor<B, 4>, k: Tensor<B, 4>) -> Tensor<B, 3> {
    let [images, heads, s, d] = k.dims();
    let of_image = |image: usize| {
        let [q, k] = [&q, &k].map(|x| x.clone().narrow(0, image, 1).cast(FloatDType::F32));
        let map = softmax((q / (d as f64).sqrt()).matmul(k.swap_dims(2, 3)), 3); // [1, heads, s, s]
        map.mean_dim(2).reshape([1, heads, s])
    };
    let dtype = q.dtype();
    cast(Tensor::cat((0..images).map(of_image).collect(), 0), dtype.into())
}

impl<B: Backend> ClipVit<B> {
    fn embed(&self, pixel_values: Tensor<B, 4>) -> Tensor<B, 2> {
        let embedded = self.embeddings.forward(pixel_values);
        let embedded = match &self.pre_layrnorm {
            Some(norm) => norm.forward(embedded),
            None => embedded,
        };
        let [images, s, d] = embedded.dims();
        embedded.reshape([images * s, d])
    }

    /// Selected and last hidden state of `[images, 3, side, side]`: all layers, for tower training.
    pub fn hidden(&self, pixel_values: Tensor<B, 4>) -> VitHidden<B> {
        let images = pixel_values.dims()[0];
        let selected_layers = self.config.selected_layers();
        let mut x = self.embed(pixel_values);
        let mut selected = None;
        for (index, layer) in self.encoder.layers.iter().enumerate() {
            x = layer.forward(x, images, &self.config, &Needs::none()).0;
            if index + 1 == selected_layers {
                selected = Some(x.clone());
            }
        }
        let [rows, d] = x.dims();
        let shape = [images, rows / images, d];
        let last = x.reshape(shape);
        VitHidden { selected: selected.map_or_else(|| last.clone(), |x| x.reshape(shape)), last }
    }

    /// Puts another projection `[d, p]` into the space shared with text.
    pub fn set_visual_projection(&mut self, weight: Tensor<B, 2>) {
        self.config.projection_dim = Some(weight.dims()[1]);
        let id = ParamId::from(hash_str("vision_tower.visual_projection.weight"));
        let weight = Param::initialized(id, weight.set_require_grad(false));
        self.visual_projection = Some(Linear { weight, bias: None });
    }

    /// Into the space shared with text, unit length: `[.., d] -> [.., p]`.
    pub fn project<const D: usize>(&self, hidden: Tensor<B, D>) -> Option<Tensor<B, D>> {
        let projection = self.visual_projection.as_ref()?;
        Some(unit_length(projection.forward(self.post_layernorm.forward(hidden))))
    }
}

impl<B: Backend> VisionTower<B> for ClipVit<B> {
    fn geometry(&self) -> VisionGeometry {
        self.config.geometry()
    }

    fn features(&self, pixel_values: Tensor<B, 4>, needs: &Needs) -> VisionFeatures<B> {
        let images = pixel_values.dims()[0];
        let selected_layers = self.config.selected_layers();
        let last = self.encoder.layers.len().saturating_sub(1);
        let clip = self.config.family == VitFamily::Clip;
        let needs_last = clip && (needs.has(LAST_CLS_ATTENTION) || needs.has(LAST_KEYS));
        let none = Needs::none();
        let mut x = self.embed(pixel_values); // [images * positions, d]
        let mut selected = (x.clone(), Probe { received_attention: None, keys: None });
        let mut last_layer = None;
        for (index, layer) in self.encoder.layers.iter().enumerate() {
            if needs_last && index == last {
                last_layer = Some(layer.full_width_attention(x.clone(), images));
            }
            if index >= selected_layers && (index == last || !needs_last) {
                break;
            }
            let wanted = if index + 1 == selected_layers { needs } else { &none };
            let (output, probe) = layer.forward(x, images, &self.config, wanted);
            x = output;
            if index + 1 == selected_layers {
                selected = (x.clone(), probe);
            }
        }
        let (x, probe) = selected;
        let [rows, d] = x.dims();
        let s = rows / images;
        let first = match self.config.mm_vision_select_feature {
            SelectFeature::Patch if clip => 1,
            SelectFeature::Patch | SelectFeature::ClsPatch => 0,
        };
        let tokens = |x: Tensor<B, 3>| x.narrow(1, first, s - first); // [images, n, ..]
        let all = x.reshape([images, s, d]);
        let hidden = tokens(all.clone());
        let patch_text =
            if clip && needs.has(PATCH_TEXT) { self.project(hidden.clone()) } else { None };
        let (last_cls_attention, last_keys) = last_layer.unzip();
        let of_tokens = |attention: Tensor<B, 3>| tokens(attention.swap_dims(1, 2));
        VisionFeatures::new(hidden)
            .with_some(CLS_ATTENTION, probe.received_attention.map(of_tokens))
            .with_some(KEYS, probe.keys.map(tokens))
            .with_some(PATCH_TEXT, patch_text)
            .with_some(CLS_HIDDEN, (clip && needs.has(CLS_HIDDEN)).then(|| all.narrow(1, 0, 1)))
            .with_some(LAST_CLS_ATTENTION, last_cls_attention.map(of_tokens))
            .with_some(LAST_KEYS, last_keys.map(tokens))
    }
}
