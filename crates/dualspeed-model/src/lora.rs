//! Low-rank adapters in activation space, with dropout masks that are explicit inputs.
//!
//! The adapters are a module of their own beside the frozen decoder (as PEFT stores them), so a
//! checkpoint of a LoRA run holds nothing else.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use dualspeed_ops::{Backend, Dropout, DropoutKeys};

use crate::config::{LlamaConfig, LoraConfig, LoraTarget};
use crate::init::Init;
use crate::layers::Linear;
use crate::rng::mix;

/// The two factors of one adapter.
#[derive(Module, Debug)]
pub struct LoraPair<B: Backend> {
    /// `[d_in, r]`, Kaiming-uniform.
    pub lora_a: Param<Tensor<B, 2>>,
    /// `[r, d_out]`, zero: a fresh adapter changes nothing.
    pub lora_b: Param<Tensor<B, 2>>,
}

/// Adapters of one decoder block.
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
    pub fn init(init: &Init<'_, B>, config: &LoraConfig, text: &LlamaConfig) -> Self {
        let d = text.hidden_size;
        let q = text.num_attention_heads * text.head_size();
        let kv = text.kv_heads() * text.head_size();
        let mlp = text.intermediate_size;
        let pair = |layer: usize, name: &str, target: LoraTarget, d_in: usize, d_out: usize| {
            let at = init.at("layers").at(layer).at(name);
            config.targets.contains(&target).then(|| LoraPair {
                lora_a: at.at("lora_a").uniform([d_in, config.r], (d_in as f64).powf(-0.5)),
                lora_b: at.at("lora_b").constant([config.r, d_out], 0.0),
            })
        };
        let layers = (0..text.num_hidden_layers)
            .map(|i| LoraLayer {
                q_proj: pair(i, "q_proj", LoraTarget::QProj, d, q),
                k_proj: pair(i, "k_proj", LoraTarget::KProj, d, kv),
                v_proj: pair(i, "v_proj", LoraTarget::VProj, d, kv),
                o_proj: pair(i, "o_proj", LoraTarget::OProj, q, d),
                gate_proj: pair(i, "gate_proj", LoraTarget::GateProj, d, mlp),
                up_proj: pair(i, "up_proj", LoraTarget::UpProj, d, mlp),
                down_proj: pair(i, "down_proj", LoraTarget::DownProj, mlp, d),
            })
            .collect();
        Self { layers, config: config.clone() }
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

/// The adapters of one block as a forward uses them.
pub(crate) struct LayerAdapters<'a, B: Backend> {
    pub lora: Option<&'a Lora<B>>,
    pub layer: usize,
    pub dropout: Option<&'a DropoutKeys<B>>,
}

// Derived, these would ask for `B: Copy`.
impl<B: Backend> Clone for LayerAdapters<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B: Backend> Copy for LayerAdapters<'_, B> {}

impl<B: Backend> LayerAdapters<'_, B> {
    /// The adapter of one linear layer, if it has one.
    pub fn pair(&self, target: LoraTarget) -> Option<&LoraPair<B>> {
        self.lora?.layers.get(self.layer)?.pair(target)
    }

    /// `x W (+ b) + scale (mask * x) A B` for `[rows, d_in]`.
    pub fn apply(&self, linear: &Linear<B>, target: LoraTarget, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let Some((lora, pair)) = self.lora.zip(self.pair(target)) else {
            return linear.forward(x);
        };
        let config = &lora.config;
        let dropout = self.dropout.filter(|_| config.dropout > 0.0).map(|keys| Dropout {
            keys: DropoutKeys::clone(keys),
            place: dropout_place(self.layer, target),
            p: config.dropout,
        });
        dualspeed_ops::lora_linear(
            x,
            linear.weight.val(),
            linear.bias.as_ref().map(|bias| bias.val()),
            pair.lora_a.val(),
            pair.lora_b.val(),
            config.scale(),
            dropout,
        )
    }
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
