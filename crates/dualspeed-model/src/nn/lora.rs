//! Low-rank adapters in activation space, with dropout masks that are explicit inputs.
//!
//! The adapters are a module of their own beside the frozen decoder (as PEFT stores them), so a
//! checkpoint of a LoRA run holds nothing else.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use dualspeed_core::rng::mix;
use dualspeed_ops::{Backend, DropoutKeys};

use super::{Init, Linear};
use crate::config::{DecoderConfig, LoraConfig, LoraTarget};

/// The two factors of one adapter.
#[derive(Module, Debug)]
pub struct LoraPair<B: Backend> {
    /// `[d_in, r]`, Kaiming-uniform.
    pub lora_a: Param<Tensor<B, 2>>,
    /// `[r, d_out]`, zero: a fresh adapter changes nothing.
    pub lora_b: Param<Tensor<B, 2>>,
}

/// Adapters of one decoder block; field names are the checkpoints'.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct LoraLayer<B: Backend> {
    pub q_proj: Option<LoraPair<B>>,
    pub k_proj: Option<LoraPair<B>>,
    pub v_proj: Option<LoraPair<B>>,
    pub o_proj: Option<LoraPair<B>>,
    pub gate_proj: Option<LoraPair<B>>,
    pub up_proj: Option<LoraPair<B>>,
    pub down_proj: Option<LoraPair<B>>,
}

/// Adapters of a whole decoder.
#[derive(Module, Debug)]
pub struct Lora<B: Backend> {
    /// One entry per decoder block.
    pub layers: Vec<LoraLayer<B>>,
    /// Rank, scale, dropout and targets.
    pub config: LoraConfig,
}

impl<B: Backend> LoraLayer<B> {
    /// The adapter of one linear layer, if it has one.
    pub fn pair(&self, target: LoraTarget) -> Option<&LoraPair<B>> {
        match target {
            LoraTarget::QProj => self.q_proj.as_ref(),
            LoraTarget::KProj => self.k_proj.as_ref(),
            LoraTarget::VProj => self.v_proj.as_ref(),
            LoraTarget::OProj => self.o_proj.as_ref(),
            LoraTarget::GateProj => self.gate_proj.as_ref(),
            LoraTarget::UpProj => self.up_proj.as_ref(),
            LoraTarget::DownProj => self.down_proj.as_ref(),
        }
    }
}

impl<B: Backend> Lora<B> {
    /// Fresh adapters for a decoder; the model's output does not change until they are trained.
    pub fn init(init: &Init<'_, B>, config: &LoraConfig, text: &DecoderConfig) -> Self {
        let widths = text.linear_widths();
        let layer = |index: usize| {
            let pair = |target: LoraTarget| {
                let at = init.at("layers").at(index).at(target.name());
                let [d_in, d_out] = *widths.get(target);
                config.targets.contains(&target).then(|| LoraPair {
                    lora_a: at.at("lora_a").uniform([d_in, config.r], (d_in as f64).powf(-0.5)),
                    lora_b: at.at("lora_b").constant([config.r, d_out], 0.0),
                })
            };
            LoraLayer {
                q_proj: pair(LoraTarget::QProj),
                k_proj: pair(LoraTarget::KProj),
                v_proj: pair(LoraTarget::VProj),
                o_proj: pair(LoraTarget::OProj),
                gate_proj: pair(LoraTarget::GateProj),
                up_proj: pair(LoraTarget::UpProj),
                down_proj: pair(LoraTarget::DownProj),
            }
        };
        Self { layers: (0..text.num_hidden_layers).map(layer).collect(), config: config.clone() }
    }

    /// The adapter of a linear layer of block `layer`, if it has one.
    pub fn pair(&self, layer: usize, target: LoraTarget) -> Option<&LoraPair<B>> {
        self.layers.get(layer)?.pair(target)
    }
}

/// The random state of every row of a forward's activations.
///
/// A mask row depends on (seed, step, sample, position, layer, target) only, so the masks are the
/// same however a step's samples are divided into micro-batches.
#[derive(Clone, Debug)]
pub struct DropoutStates(Vec<u64>);

impl DropoutStates {
    /// From a key (seed and step, mixed), and for every row the hash of its sample's id and its
    /// position in the sequence.
    pub fn new(key: u64, rows: impl Iterator<Item = (u64, usize)>) -> Self {
        Self(rows.map(|(sample, position)| mix(&[key, sample, position as u64])).collect())
    }

    /// The states of some of the rows.
    pub fn select(&self, rows: &[usize]) -> Self {
        Self(rows.iter().map(|row| self.0[*row]).collect())
    }

    /// On a device, for the masks.
    pub fn upload<B: Backend>(&self, device: &B::Device) -> DropoutKeys<B> {
        DropoutKeys::new(self.0.clone(), device)
    }
}

/// What sets the masks of a layer's adapter apart from all others'.
pub(crate) fn dropout_place(layer: usize, target: LoraTarget) -> u64 {
    mix(&[layer as u64, target as u64])
}

/// `W + scale A B`: folds an adapter into its linear layer.
pub(crate) fn merge<B: Backend>(
    linear: Linear<B>,
    pair: Option<&LoraPair<B>>,
    scale: f64,
) -> Linear<B> {
    let Some(pair) = pair else { return linear };
    let delta = pair.lora_a.val().matmul(pair.lora_b.val()).mul_scalar(scale).detach();
    let merged = |weight: Tensor<B, 2>| {
        let require_grad = weight.is_require_grad();
        (weight.detach() + delta).set_require_grad(require_grad)
    };
    Linear { weight: linear.weight.map(merged), bias: linear.bias }
}
