//! The weights of a decoder block, and how the block operation takes them.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use dualspeed_ops::{Backend, BlockLinear, BlockParams, PerTarget};

use crate::config::{DecoderConfig, LoraTarget};
use crate::nn::lora::{Lora, LoraLayer, merge};
use crate::nn::{Init, Linear, RmsNorm};

/// Self-attention of a block; field names are the checkpoints'.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Attention<B: Backend> {
    pub q_proj: Linear<B>,
    pub k_proj: Linear<B>,
    pub v_proj: Linear<B>,
    pub o_proj: Linear<B>,
    pub q_norm: Option<RmsNorm<B>>,
    pub k_norm: Option<RmsNorm<B>>,
}

/// Gated MLP of a block, no biases.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct Mlp<B: Backend> {
    pub gate_proj: Linear<B>,
    pub up_proj: Linear<B>,
    pub down_proj: Linear<B>,
}

/// One block.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct DecoderLayer<B: Backend> {
    pub self_attn: Attention<B>,
    pub mlp: Mlp<B>,
    pub input_layernorm: RmsNorm<B>,
    pub post_attention_layernorm: RmsNorm<B>,
}

impl<B: Backend> DecoderLayer<B> {
    /// A block with initial weights that are a function of `at`'s seed and path.
    pub(super) fn init(at: &Init<'_, B>, config: &DecoderConfig) -> Self {
        let widths = config.linear_widths();
        // Without a fixed range: fan-in scaling, residual branches damped by the depth.
        let branch = 1.0 / (2.0 * config.num_hidden_layers as f64).sqrt();
        let linear = |part: &str, target: LoraTarget, gain: f64| {
            let [d_in, d_out] = *widths.get(target);
            let bias = config.qkv_bias
                && matches!(target, LoraTarget::QProj | LoraTarget::KProj | LoraTarget::VProj);
            let gain = config.initializer_range.map_or(gain, |std| std * (d_in as f64).sqrt());
            Linear::init(&at.at(part).at(target.name()), d_in, d_out, bias, gain)
        };
        let (d, head, eps) = (config.hidden_size, config.head_size(), config.rms_norm_eps);
        let head_norm = |name: &str| {
            config.qk_norm.then(|| RmsNorm::init(&at.at("self_attn").at(name), head, eps))
        };
        Self {
            self_attn: Attention {
                q_proj: linear("self_attn", LoraTarget::QProj, 1.0),
                k_proj: linear("self_attn", LoraTarget::KProj, 1.0),
                v_proj: linear("self_attn", LoraTarget::VProj, 1.0),
                o_proj: linear("self_attn", LoraTarget::OProj, branch),
                q_norm: head_norm("q_norm"),
                k_norm: head_norm("k_norm"),
            },
            mlp: Mlp {
                gate_proj: linear("mlp", LoraTarget::GateProj, 1.0),
                up_proj: linear("mlp", LoraTarget::UpProj, 1.0),
                down_proj: linear("mlp", LoraTarget::DownProj, branch),
            },
            input_layernorm: RmsNorm::init(&at.at("input_layernorm"), d, eps),
            post_attention_layernorm: RmsNorm::init(&at.at("post_attention_layernorm"), d, eps),
        }
    }

    /// A linear layer by name.
    pub fn linear(&self, target: LoraTarget) -> &Linear<B> {
        match target {
            LoraTarget::QProj => &self.self_attn.q_proj,
            LoraTarget::KProj => &self.self_attn.k_proj,
            LoraTarget::VProj => &self.self_attn.v_proj,
            LoraTarget::OProj => &self.self_attn.o_proj,
            LoraTarget::GateProj => &self.mlp.gate_proj,
            LoraTarget::UpProj => &self.mlp.up_proj,
            LoraTarget::DownProj => &self.mlp.down_proj,
        }
    }

    /// The parameters of block `index`, adapters included, as the block operation takes them.
    pub(super) fn params(
        &self,
        index: usize,
        lora: Option<&Lora<B>>,
    ) -> BlockParams<B::FloatTensorPrimitive> {
        let linear = |target| {
            let (layer, pair) =
                (self.linear(target), lora.and_then(|lora| lora.pair(index, target)));
            BlockLinear {
                weight: primitive(&layer.weight),
                bias: layer.bias.as_ref().map(primitive),
                lora: pair.map(|pair| (primitive(&pair.lora_a), primitive(&pair.lora_b))),
            }
        };
        let norm = |norm: &RmsNorm<B>| primitive(&norm.weight);
        BlockParams {
            input_layernorm: norm(&self.input_layernorm),
            post_attention_layernorm: norm(&self.post_attention_layernorm),
            q_norm: self.self_attn.q_norm.as_ref().map(norm),
            k_norm: self.self_attn.k_norm.as_ref().map(norm),
            linear: PerTarget::from_fn(linear),
        }
    }

    /// The block with adapters folded into its weights; `scale` is theirs.
    pub(super) fn merge_lora(self, lora: &LoraLayer<B>, scale: f64) -> Self {
        let Self { self_attn, mlp, input_layernorm, post_attention_layernorm } = self;
        let merge = |linear, pair: &Option<_>| merge(linear, pair.as_ref(), scale);
        Self {
            self_attn: Attention {
                q_proj: merge(self_attn.q_proj, &lora.q_proj),
                k_proj: merge(self_attn.k_proj, &lora.k_proj),
                v_proj: merge(self_attn.v_proj, &lora.v_proj),
                o_proj: merge(self_attn.o_proj, &lora.o_proj),
                ..self_attn
            },
            mlp: Mlp {
                gate_proj: merge(mlp.gate_proj, &lora.gate_proj),
                up_proj: merge(mlp.up_proj, &lora.up_proj),
                down_proj: merge(mlp.down_proj, &lora.down_proj),
            },
            input_layernorm,
            post_attention_layernorm,
        }
    }
}

fn primitive<B: Backend, const D: usize>(param: &Param<Tensor<B, D>>) -> B::FloatTensorPrimitive {
    param.val().into_primitive().tensor()
}
