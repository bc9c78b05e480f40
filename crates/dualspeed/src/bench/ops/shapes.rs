//! Shapes of the operations, from those of a model.

use dualspeed_model::{LlavaConfig, LoraTarget};
use dualspeed_ops::Keep;

use crate::bench::model_size::ModelSize;

/// Sizes of the operands of operations.
#[derive(Clone, Debug)]
pub(super) struct Shapes {
    /// Width of the decoder.
    pub d: usize,
    /// Width inside its MLP.
    pub mlp: usize,
    /// Query heads, key and value heads, and the width of one.
    pub heads: usize,
    pub kv_heads: usize,
    pub head: usize,
    pub layers: usize,
    pub vocab: usize,
    /// Rank of the adapters.
    pub rank: usize,
    /// Products `[rows, d_in, d_out]`.
    pub products: Vec<[usize; 3]>,
    pub lora: Vec<[usize; 3]>,
    /// Batch and length.
    pub attention: [(usize, usize); 4],
    /// Supervised tokens.
    pub targets: usize,
    /// Batch, length, and what the backward pass finds ready.
    pub blocks: [(usize, usize, Keep); 3],
    /// Images in a batch, and tokens of one.
    pub images: usize,
    pub patches: usize,
    /// Heads of the tower, width of one, width inside its MLP.
    pub tower_heads: usize,
    pub tower_head: usize,
    pub tower_mlp: usize,
    /// Milliseconds that a block of calls lasts.
    pub block_ms: f64,
}

impl Shapes {
    /// The rows of LLaVA-1.5's batches with the widths of `config`; few for the tiny size.
    pub(super) fn of(size: ModelSize, config: &LlavaConfig) -> Self {
        let tiny = size == ModelSize::Tiny;
        let (text, vision) = (&config.text, size.vision());
        let (d, mlp) = (text.hidden_size, text.intermediate_size);
        let rank = config.lora.as_ref().map_or(8, |lora| lora.r);
        let [square, rows, fewer] = if tiny { [64, 80, 24] } else { [8192, 16 * 704, 3024] };
        let [short, long] = if tiny { [30, 96] } else { [16 * 253, 16 * 768] };
        Self {
            d,
            mlp,
            heads: text.num_attention_heads,
            kv_heads: text.kv_heads(),
            head: text.head_size(),
            layers: text.num_hidden_layers,
            vocab: text.vocab_size,
            rank,
            products: vec![
                [square; 3],
                [rows, d, mlp],
                [rows, mlp, d],
                [fewer, d, mlp],
                [fewer, d, d],
                [rows, d, d],
                [rows, d, rank],
            ],
            lora: vec![[short, d, d], [short, d, mlp], [long, d, mlp]],
            attention: if tiny {
                [(2, 16), (2, 40), (1, 96), (2, 9)]
            } else {
                [(16, 256), (16, 704), (4, 3072), (32, 93)]
            },
            targets: if tiny { 32 } else { 2048 },
            blocks: if tiny {
                [(2, 15, Keep::All), (2, 48, Keep::All), (2, 48, Keep::Input)]
            } else {
                [(16, 253, Keep::All), (16, 768, Keep::All), (16, 768, Keep::Input)]
            },
            images: if tiny { 2 } else { 16 },
            patches: vision.num_patches(),
            tower_heads: vision.num_attention_heads,
            tower_head: vision.hidden_size / vision.num_attention_heads,
            tower_mlp: vision.intermediate_size,
            block_ms: if tiny { 1.0 } else { 20.0 },
        }
    }

    /// Batch times length of the long attention.
    pub(super) fn rows(&self) -> usize {
        let (batch, length) = self.attention[1];
        batch * length
    }

    /// Input and output width of a layer of the decoder.
    pub(super) fn layer(&self, target: LoraTarget) -> [usize; 2] {
        let (q, kv) = (self.heads * self.head, self.kv_heads * self.head);
        match target {
            LoraTarget::QProj => [self.d, q],
            LoraTarget::KProj | LoraTarget::VProj => [self.d, kv],
            LoraTarget::OProj => [q, self.d],
            LoraTarget::GateProj | LoraTarget::UpProj => [self.d, self.mlp],
            LoraTarget::DownProj => [self.mlp, self.d],
        }
    }
}
