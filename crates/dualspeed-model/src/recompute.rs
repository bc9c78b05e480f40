//! Layer-wise recompute: forward and backward of the decoder with the activations of the first blocks thrown away and
//! computed again (Chen et al. 2016, arXiv 1604.06174, one block at a time).
//!
//! Those blocks run forward on the inner backend and leave their inputs only. In the backward pass each of them is run
//! again on the autodiff backend from its input, and what comes out of one is what goes into the one before. The values
//! are those of plain autodiff: the same operations on the same numbers.

use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::AutodiffBackend;

use crate::llama::{Cut, Llama};
use crate::lora::{DropoutKey, LayerAdapters, Lora};

/// Which part of the model a set of gradients belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The head, the norm before it, and the blocks that are not recomputed.
    Tail,
    /// One recomputed block.
    Block(usize),
    /// Whatever made the input embeddings.
    Embeddings,
}

/// What a pass is given besides the embeddings.
#[derive(Debug)]
pub struct PassOptions<'a, B: AutodiffBackend> {
    /// Rows of the flattened `[b * s]` whose output is wanted, in this order.
    pub rows: &'a [usize],
    /// Adapters.
    pub lora: Option<&'a Lora<B>>,
    /// Adapter dropout.
    pub dropout: Option<&'a DropoutKey>,
    /// How many leading blocks are computed again; the last block never is.
    pub recompute: usize,
    /// Whether the embeddings come out of something that is trained.
    pub embeddings_trained: bool,
}

impl<B: AutodiffBackend> Llama<B> {
    /// Forward and backward in one: returns the loss.
    ///
    /// `loss` gets the final hidden states `[rows, d]` and returns the loss `[1]`; `take` gets the gradients part by
    /// part, last part first.
    pub fn forward_backward(
        &self,
        inputs_embeds: Tensor<B, 3>,
        options: &PassOptions<'_, B>,
        loss: impl FnOnce(Tensor<B, 2>) -> Tensor<B, 1>,
        mut take: impl FnMut(Part, B::Gradients),
    ) -> Tensor<B::InnerBackend, 1> {
        let PassOptions { rows, lora, dropout, recompute, embeddings_trained } = *options;
        let [batch, seq, d] = inputs_embeds.dims();
        let device = inputs_embeds.device();
        let layers = self.layers.len();
        let first = recompute.min(layers.saturating_sub(1));
        let embeds = inputs_embeds.reshape([batch * seq, d]); // [b * s, d]
        let rope = self.config.rope_tables::<B>(0, seq, &device);

        let (mut x, mut inputs) = (embeds.clone().inner(), Vec::with_capacity(first));
        if first > 0 {
            let (inner, inner_lora) = (self.valid(), lora.map(AutodiffModule::valid));
            let rope = (rope.0.clone().inner(), rope.1.clone().inner());
            for layer in 0..first {
                inputs.push(x.clone());
                let adapters = LayerAdapters { lora: inner_lora.as_ref(), layer, dropout };
                x = inner.block(x, batch, &rope, adapters, None, None);
            }
        }

        // Without recomputed blocks the graph reaches back to whatever made the embeddings.
        let leaf = if first > 0 { Tensor::from_inner(x).require_grad() } else { embeds.clone() };
        let ids: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
        let wanted = Tensor::<B, 1, Int>::from_data(TensorData::new(ids, [rows.len()]), &device);
        let wanted_dropout = dropout.map(|key| key.select(rows));
        let mut x = leaf.clone();
        for layer in first..layers {
            let cut = Cut { rows: &wanted, dropout: wanted_dropout.as_ref() };
            let cut = (layer + 1 == layers).then_some(cut);
            let adapters = LayerAdapters { lora, layer, dropout };
            x = self.block(x, batch, &rope, adapters, None, cut);
        }
        let loss = loss(self.norm.forward(x));
        let value = loss.clone().inner();
        let mut grads = loss.backward();
        let mut grad = if first > 0 { leaf.grad_remove(&mut grads) } else { None };
        take(Part::Tail, grads);

        for (layer, input) in inputs.into_iter().enumerate().rev() {
            let Some(above) = grad.take() else { break };
            let leaf = Tensor::<B, 2>::from_inner(input).require_grad();
            let adapters = LayerAdapters { lora, layer, dropout };
            let y = self.block(leaf.clone(), batch, &rope, adapters, None, None);
            let mut grads = dualspeed_ops::inner_product(y, above).backward();
            grad = leaf.grad_remove(&mut grads);
            take(Part::Block(layer), grads);
        }
        if let Some(grad) = grad.filter(|_| embeddings_trained) {
            take(Part::Embeddings, dualspeed_ops::inner_product(embeds, grad).backward());
        }
        value
    }
}
