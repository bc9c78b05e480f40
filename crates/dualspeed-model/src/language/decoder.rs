//! The decoder: RMS norms, rotary positions, grouped-query attention, SwiGLU; biases and norms of queries and keys by flags.
//!
//! Activations are `[rows, d]` with `rows = batch * seq`; only attention sees the sequence. The
//! last block's output projection and MLP, the final norm and the head run at the wanted rows
//! only: no position whose output nobody reads is carried past its keys and values.

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use dualspeed_ops::{
    AttentionSpec, Backend, BlockContext, BlockDropout, DropoutKeys, Keep, PerTarget, SelectedRows,
};

use super::cache::KvCache;
use super::layer::DecoderLayer;
use super::rotary::RotaryTables;
use crate::config::{DecoderConfig, LoraConfig};
use crate::layout::Position;
use crate::nn::heads::split_heads;
use crate::nn::lora::{DropoutStates, Lora, dropout_place};
use crate::nn::{Embedding, Init, Linear, RmsNorm};
use crate::pruner::{DropPlan, DropScore, uniform_scores};

/// The decoder; field names are the checkpoints'.
#[derive(Module, Debug)]
pub struct Decoder<B: Backend> {
    /// `[vocab, d]`.
    pub embed_tokens: Embedding<B>,
    /// Blocks, first to last.
    pub layers: Vec<DecoderLayer<B>>,
    /// The norm before the head.
    pub norm: RmsNorm<B>,
    /// `[d, vocab]`; absent when the head is the embedding table.
    pub lm_head: Option<Linear<B>>,
    /// The configuration this was built from.
    pub config: DecoderConfig,
}

/// What a decoder forward may be given besides its embeddings.
#[derive(Debug)]
pub struct DecoderOptions<'a, B: Backend> {
    /// Rows of the flattened `[b * s]` whose output is wanted, in this order; all by default.
    pub wanted: Option<&'a [usize]>,
    /// Adapters.
    pub lora: Option<&'a Lora<B>>,
    /// Adapter dropout; none outside training.
    pub dropout: Option<&'a DropoutStates>,
    /// Earlier positions; this forward's are appended.
    pub cache: Option<&'a mut KvCache<B>>,
    /// For each block, what its backward pass finds ready; everything by default.
    pub keep: Option<&'a [Keep]>,
    /// Rotary position of each of the `[b * s]` rows; counted on from the cache by default.
    pub positions: Option<&'a [Position]>,
    /// Where `positions` are given, the one of the token after them, for the cache; by default one more than the largest.
    pub next_position: Option<Position>,
    /// Visual tokens to drop on the way.
    pub drop: Option<DropPlan>,
}

impl<B: Backend> Default for DecoderOptions<'_, B> {
    fn default() -> Self {
        Self {
            wanted: None,
            lora: None,
            dropout: None,
            cache: None,
            keep: None,
            positions: None,
            next_position: None,
            drop: None,
        }
    }
}

impl DecoderConfig {
    /// A decoder with initial weights that are a function of `init`'s seed and path.
    pub fn init<B: Backend>(&self, init: &Init<'_, B>) -> Decoder<B> {
        let (d, vocab) = (self.hidden_size, self.vocab_size);
        // A tied table is also the head: logits of unit scale want rows of norm one or less.
        let own = if self.tie_word_embeddings { (d as f64).powf(-0.5) } else { 0.5 };
        let std = self.initializer_range.unwrap_or(own);
        let head_gain = self.initializer_range.map_or(0.5, |std| std * (d as f64).sqrt());
        let layer = |index| DecoderLayer::init(&init.at("layers").at(index), self);
        Decoder {
            embed_tokens: Embedding::init(&init.at("embed_tokens"), vocab, d, std),
            layers: (0..self.num_hidden_layers).map(layer).collect(),
            norm: RmsNorm::init(&init.at("norm"), d, self.rms_norm_eps),
            lm_head: (!self.tie_word_embeddings)
                .then(|| Linear::init(&init.at("lm_head"), d, vocab, false, head_gain)),
            config: self.clone(),
        }
    }
}

impl<B: Backend> Decoder<B> {
    /// Embeddings of token ids: `[n] -> [n, d]`.
    pub fn embed(&self, input_ids: Tensor<B, 1, Int>) -> Tensor<B, 2> {
        self.embed_tokens.forward(input_ids)
    }

    /// The output head, `[d, vocab]`.
    pub fn lm_head_weight(&self) -> Tensor<B, 2> {
        match &self.lm_head {
            Some(head) => head.weight.val(),
            None => self.embed_tokens.weight.val().transpose(),
        }
    }

    /// Final-norm output at the wanted rows: `[b, s, d] -> [wanted, d]`.
    ///
    /// Sequences are right-padded; the mask is causal, so padding reaches no real position.
    pub fn forward(
        &self,
        inputs_embeds: Tensor<B, 3>,
        options: DecoderOptions<'_, B>,
    ) -> Tensor<B, 2> {
        let DecoderOptions {
            wanted,
            lora,
            dropout,
            mut cache,
            keep,
            positions,
            next_position,
            mut drop,
        } = options;
        let ([batch, mut seq, d], layers) = (inputs_embeds.dims(), self.layers.len());
        let (device, entered) = (inputs_embeds.device(), seq);
        let next = cache.as_ref().and_then(|cache| cache.next.first().copied());
        let mut start = next.unwrap_or_default();
        // Rotary tables, and the position of the token after these.
        let (mut rotary, mut after) = match positions {
            Some(positions) => {
                let after = next_position.or(Position::after(positions)).unwrap_or_default();
                (self.config.rotary_tables::<B>(positions, batch, &device), after)
            }
            None => (self.config.counted_tables(start, seq, &device), start.advanced(seq)),
        };
        let mut wanted = wanted.map(<[usize]>::to_vec);
        let mut states = dropout.cloned();
        let mut x = inputs_embeds.reshape([batch * seq, d]); // [b * s, d]
        let mut keys = states.as_ref().map(|states| states.upload::<B>(&device));
        for (index, layer) in self.layers.iter().enumerate() {
            if let Some(cache) = &mut cache {
                if positions.is_none() && cache.next[index] != start {
                    start = cache.next[index];
                    rotary = self.config.counted_tables(start, seq, &device);
                    after = start.advanced(seq);
                }
                cache.next[index] = after;
            }
            // Only the last block may leave rows out: every other one's are the next one's keys.
            let rows = wanted.as_deref().filter(|_| index + 1 == layers);
            let keep = keep.and_then(|keep| keep.get(index)).copied().unwrap_or_default();
            let ctx = self.block(index, batch, &rotary, lora, keys.as_ref(), rows, keep);
            let block_cache = cache.as_deref_mut().and_then(|cache| cache.blocks.get_mut(index));
            x = dualspeed_ops::decoder_block(x, layer.params(index, lora), &ctx, block_cache);
            let (Some(plan), Some(next)) = (&mut drop, self.layers.get(index + 1)) else {
                continue;
            };
            let scores = |plan: &DropPlan| match plan.schedule.score() {
                DropScore::Uniform => uniform_scores(plan, index, layers, seq, &device),
                DropScore::InstructionAttention => {
                    let x = x.clone().detach();
                    let rotary = self.config.layer_tables(index + 1, &rotary);
                    self.instruction_attention(next, x, &rotary, plan.instruction())
                }
            };
            let place = (index, layers);
            let Some(dropped) = plan.drop_after(place, seq, wanted.as_deref(), &device, scores)
            else {
                continue;
            };
            x = dropped.select(x, seq); // [b * s', d]
            rotary = match plan.keeps_positions() {
                true => RotaryTables {
                    cos: dropped.select_each(rotary.cos),
                    sin: dropped.select_each(rotary.sin),
                },
                false => {
                    after = start.advanced(dropped.seq);
                    self.config.counted_tables(start, dropped.seq, &device)
                }
            };
            // A mask belongs to a sample and a place in it, whatever token stands there.
            states = states.map(|states| states.select(&dropped.leading_rows(seq)));
            keys = states.as_ref().map(|states| states.upload::<B>(&device));
            (wanted, seq) = (dropped.wanted, dropped.seq);
        }
        if let Some(cache) = cache {
            cache.saw(entered);
        }
        self.norm.forward(x) // [wanted, d]
    }

    /// How block `index` is run.
    fn block(
        &self,
        index: usize,
        batch: usize,
        rotary: &RotaryTables<B>,
        lora: Option<&Lora<B>>,
        dropout: Option<&DropoutKeys<B>>,
        rows: Option<&[usize]>,
        keep: Keep,
    ) -> BlockContext<B> {
        let rotary = self.config.layer_tables(index, rotary);
        let adapters = lora.map(|lora| &lora.config);
        let dropout = adapters.zip(dropout).filter(|(config, _)| config.dropout > 0.0);
        BlockContext {
            batch,
            heads: self.config.num_attention_heads,
            kv_heads: self.config.kv_heads(),
            eps: self.config.rms_norm_eps,
            rows: rows.map(|rows| SelectedRows::new(rows, &rotary.cos.device())),
            cos: rotary.cos.into_primitive().tensor(),
            sin: rotary.sin.into_primitive().tensor(),
            attention: AttentionSpec::causal(),
            lora_scale: adapters.map_or(0.0, LoraConfig::scale),
            dropout: dropout.map(|(config, keys)| BlockDropout {
                keys: DropoutKeys::clone(keys),
                p: config.dropout,
                places: PerTarget::from_fn(|target| dropout_place(index, target)),
            }),
            keep,
        }
    }

    /// Attention of one position per sample over all positions up to it, mean over heads, by a
    /// block's weights without adapters: `[b * s, d] -> [b, s]`.
    fn instruction_attention(
        &self,
        layer: &DecoderLayer<B>,
        x: Tensor<B, 2>,
        rotary: &RotaryTables<B>,
        positions: &[usize],
    ) -> Tensor<B, 2> {
        let (batch, heads, kv_heads) =
            (positions.len(), self.config.num_attention_heads, self.config.kv_heads());
        let (seq, device, attn) = (x.dims()[0] / batch, x.device(), &layer.self_attn);
        let x = layer.input_layernorm.forward(x);
        let rows: Vec<i64> =
            positions.iter().enumerate().map(|(b, at)| (b * seq + at) as i64).collect();
        let rows = Tensor::<B, 1, Int>::from_data(TensorData::new(rows, [batch]), &device);
        let normed = |heads: Tensor<B, 4>, norm: &Option<RmsNorm<B>>| match norm {
            Some(norm) => norm.forward(heads),
            None => heads,
        };
        let q = split_heads(attn.q_proj.forward(x.clone().select(0, rows.clone())), batch, heads);
        let k = split_heads(attn.k_proj.forward(x), batch, kv_heads);
        let (q, k) = (normed(q, &attn.q_norm), normed(k, &attn.k_norm));
        let k = dualspeed_ops::rope(k, rotary.cos.clone(), rotary.sin.clone()); // [b, h_kv, s, d_head]
        let at_rows = |table: &Tensor<B, 3>| {
            let half = table.dims()[2];
            let table = table.clone().expand([batch, seq, half]).reshape([batch * seq, half]);
            table.select(0, rows.clone()).reshape([batch, 1, half])
        };
        let q = dualspeed_ops::rope(q, at_rows(&rotary.cos), at_rows(&rotary.sin));
        let head = self.config.head_size();
        let q = q.reshape([batch, kv_heads, heads / kv_heads, head]) / (head as f64).sqrt();
        let (q, k) = (q.cast(FloatDType::F32), k.cast(FloatDType::F32));
        let later: Vec<f32> = positions
            .iter()
            .flat_map(|at| (0..seq).map(move |i| if i > *at { -1e30 } else { 0f32 }))
            .collect();
        let later = Tensor::<B, 4>::from_data(TensorData::new(later, [batch, 1, 1, seq]), &device);
        let weights = softmax(q.matmul(k.swap_dims(2, 3)) + later, 3); // [b, h_kv, g, s]
        weights.mean_dim(2).mean_dim(1).reshape([batch, seq])
    }

    /// The decoder with adapters folded into its weights.
    pub fn merge_lora(self, lora: &Lora<B>) -> Self {
        let scale = lora.config.scale();
        let layers = self.layers.into_iter().zip(&lora.layers);
        let layers = layers.map(|(layer, lora)| layer.merge_lora(lora, scale)).collect();
        Self { layers, ..self }
    }
}
