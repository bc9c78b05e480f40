//! CLIP's text tower: token ids to unit vectors in the space shared with images.
//!
//! A pre-norm transformer with a causal mask; a text is what its end token becomes. Field names are those of Hugging
//! Face's `CLIPTextModelWithProjection`.

use burn::module::Module;
use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::{AttentionSpec, Backend};
use serde::{Deserialize, Serialize};

use super::activation::activate;
use super::clip_vit::{VitAttention, VitLayer, VitMlp};
use crate::config::{HiddenAct, ModelConfigError, divisible, nonzero};
use crate::layout::LayoutError;
use crate::nn::heads::{merge_heads, split_heads};
use crate::nn::{Embedding, Init, LayerNorm, Linear, unit_length};

/// Sizes of the text tower.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ClipTextConfig {
    /// Entries of the vocabulary.
    pub vocab_size: usize,
    /// Width.
    pub hidden_size: usize,
    /// Width inside the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Tokens of the longest text, begin and end included.
    pub max_position_embeddings: usize,
    /// Width of the space shared with images.
    pub projection_dim: usize,
    /// Epsilon of the layer norms.
    pub layer_norm_eps: f64,
    /// Activation of the MLP.
    pub hidden_act: HiddenAct,
    /// Begins a text.
    pub bos_token_id: i64,
    /// Ends a text; its output is the text's.
    pub eos_token_id: i64,
}

impl Default for ClipTextConfig {
    /// CLIP ViT-L/14.
    fn default() -> Self {
        Self {
            vocab_size: 49_408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: 77,
            projection_dim: 768,
            layer_norm_eps: 1e-5,
            hidden_act: HiddenAct::QuickGelu,
            bos_token_id: 49_406,
            eos_token_id: 49_407,
        }
    }
}

impl ClipTextConfig {
    /// Checks that the tower can be built.
    ///
    /// # Errors
    /// [`ModelConfigError`] names the first field that is wrong.
    pub fn validate(&self) -> Result<(), ModelConfigError> {
        nonzero(&[
            ("clip_text.vocab_size", self.vocab_size),
            ("clip_text.hidden_size", self.hidden_size),
            ("clip_text.intermediate_size", self.intermediate_size),
            ("clip_text.num_hidden_layers", self.num_hidden_layers),
            ("clip_text.num_attention_heads", self.num_attention_heads),
            ("clip_text.projection_dim", self.projection_dim),
            // Begin, end, and something between.
            ("clip_text.max_position_embeddings", self.max_position_embeddings.saturating_sub(2)),
        ])?;
        divisible(
            ("clip_text.hidden_size", self.hidden_size),
            ("clip_text.num_attention_heads", self.num_attention_heads),
        )
    }
}

/// Tokens and positions.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct ClipTextEmbeddings<B: Backend> {
    pub token_embedding: Embedding<B>,
    pub position_embedding: Embedding<B>,
}

/// The stack of blocks.
#[derive(Module, Debug)]
pub struct ClipTextEncoder<B: Backend> {
    /// Blocks, first to last; the same as the vision tower's but for the mask.
    pub layers: Vec<VitLayer<B>>,
}

/// The tower.
#[derive(Module, Debug)]
pub struct ClipText<B: Backend> {
    /// Tokens and positions.
    pub embeddings: ClipTextEmbeddings<B>,
    /// The blocks.
    pub encoder: ClipTextEncoder<B>,
    /// The norm after them.
    pub final_layer_norm: LayerNorm<B>,
    /// Into the space shared with images.
    pub text_projection: Linear<B>,
    /// The configuration this was built from.
    pub config: ClipTextConfig,
}

impl ClipTextConfig {
    /// A tower with initial weights that are a function of `init`'s seed and path.
    pub fn init<B: Backend>(&self, init: &Init<'_, B>) -> ClipText<B> {
        let (d, eps) = (self.hidden_size, self.layer_norm_eps);
        let layer = |index: usize| {
            let at = init.at("encoder.layers").at(index);
            let linear =
                |name: &str, d_in, d_out| Linear::init(&at.at(name), d_in, d_out, true, 1.0);
            VitLayer {
                self_attn: VitAttention {
                    q_proj: linear("self_attn.q_proj", d, d),
                    k_proj: linear("self_attn.k_proj", d, d),
                    v_proj: linear("self_attn.v_proj", d, d),
                    out_proj: linear("self_attn.out_proj", d, d),
                },
                layer_norm1: LayerNorm::init(&at.at("layer_norm1"), d, eps),
                mlp: VitMlp {
                    fc1: linear("mlp.fc1", d, self.intermediate_size),
                    fc2: linear("mlp.fc2", self.intermediate_size, d),
                },
                layer_norm2: LayerNorm::init(&at.at("layer_norm2"), d, eps),
            }
        };
        let (tokens, positions) = (init.at("token_embedding"), init.at("position_embedding"));
        ClipText {
            embeddings: ClipTextEmbeddings {
                token_embedding: Embedding::init(&tokens, self.vocab_size, d, 0.02),
                position_embedding: Embedding::init(
                    &positions,
                    self.max_position_embeddings,
                    d,
                    0.01,
                ),
            },
            encoder: ClipTextEncoder { layers: (0..self.num_hidden_layers).map(layer).collect() },
            final_layer_norm: LayerNorm::init(&init.at("final_layer_norm"), d, eps),
            text_projection: Linear::init(
                &init.at("text_projection"),
                d,
                self.projection_dim,
                false,
                1.0,
            ),
            config: self.clone(),
        }
    }
}

impl<B: Backend> ClipText<B> {
    /// Unit vectors of texts that begin and end with their marks: `[texts, p]`.
    ///
    /// # Errors
    /// [`LayoutError`] if there is no text, one is empty or too long, or an id is not in the vocabulary.
    pub fn embed(&self, texts: &[Vec<i64>]) -> Result<Tensor<B, 2>, LayoutError> {
        let config = &self.config;
        let longest = texts.iter().map(Vec::len).max().unwrap_or(0);
        if longest == 0 || longest > config.max_position_embeddings {
            return Err(LayoutError::Empty);
        }
        for (sample, ids) in texts.iter().enumerate() {
            let (vocab, range) = (config.vocab_size, 0..config.vocab_size as i64);
            if ids.is_empty() {
                return Err(LayoutError::EmptySample { sample });
            }
            if let Some(position) = ids.iter().position(|id| !range.contains(id)) {
                let id = ids[position];
                return Err(LayoutError::TokenId { sample, position, id, vocab });
            }
        }
        let device = self.embeddings.token_embedding.weight.device();
        let (n, d) = (texts.len(), config.hidden_size);
        // The mask is causal, so what follows a text's end reaches nothing that is read.
        let padded = texts.iter().flat_map(|ids| {
            ids.iter().copied().chain(std::iter::repeat(config.eos_token_id)).take(longest)
        });
        let ids = TensorData::new(padded.collect::<Vec<_>>(), [n * longest]);
        let ids = Tensor::<B, 1, Int>::from_data(ids, &device);
        let tokens = self.embeddings.token_embedding.forward(ids).reshape([n, longest, d]);
        let positions = self.embeddings.position_embedding.weight.val().narrow(0, 0, longest);
        let mut x = (tokens + positions.unsqueeze::<3>()).reshape([n * longest, d]);
        for layer in &self.encoder.layers {
            x = self.layer(layer, x, n);
        }
        let ends = texts.iter().enumerate().map(|(text, ids)| {
            let end = ids.iter().position(|id| *id == config.eos_token_id);
            (text * longest + end.unwrap_or(ids.len() - 1)) as i64
        });
        let ends = TensorData::new(ends.collect::<Vec<_>>(), [n]);
        let pooled = x.select(0, Tensor::<B, 1, Int>::from_data(ends, &device)); // [texts, d]
        let pooled = self.final_layer_norm.forward(pooled);
        Ok(unit_length(self.text_projection.forward(pooled)))
    }

    /// One block on `[texts * s, d]`.
    fn layer(&self, layer: &VitLayer<B>, x: Tensor<B, 2>, texts: usize) -> Tensor<B, 2> {
        let (attn, heads) = (&layer.self_attn, self.config.num_attention_heads);
        let normed = layer.layer_norm1.forward(x.clone());
        let q = split_heads(attn.q_proj.forward(normed.clone()), texts, heads);
        let k = split_heads(attn.k_proj.forward(normed.clone()), texts, heads);
        let v = split_heads(attn.v_proj.forward(normed), texts, heads);
        let spec = AttentionSpec { causal: true, ..AttentionSpec::default() };
        let attended = merge_heads(dualspeed_ops::attention(q, k, v, &spec));
        let x = x + attn.out_proj.forward(attended);
        let up = layer.mlp.fc1.forward(layer.layer_norm2.forward(x.clone()));
        let activated = activate(self.config.hidden_act, up);
        x + layer.mlp.fc2.forward(activated)
    }
}
