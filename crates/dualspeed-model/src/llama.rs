//! The Llama decoder: RMS norms, rotary positions, grouped-query attention, SwiGLU.
//!
//! Activations are `[rows, d]` with `rows = batch * seq`; only attention sees the sequence. The
//! last block's output projection and MLP, the final norm and the head run at the requested rows
//! only: no position whose output nobody reads is carried past its keys and values.

use burn::module::Module;
use burn::tensor::activation::softmax;
use burn::tensor::{FloatDType, Int, Tensor, TensorData};
use dualspeed_ops::{
    AttentionSpec, Backend, BlockContext, BlockDropout, BlockLinear, BlockParams, DropoutKeys,
    Keep, PerTarget, select_rows,
};

use crate::config::{LlamaConfig, LoraConfig, LoraTarget};
use crate::init::Init;
use crate::layers::{Embedding, Linear, RmsNorm, merge_heads, split_heads};
use crate::lora::{DropoutStates, LayerAdapters, Lora, dropout_place, merge};
use crate::pruner::{DropPlan, DropScore, uniform_scores};

/// Self-attention of a block, no biases.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct LlamaAttention<B: Backend> {
    pub q_proj: Linear<B>,
    pub k_proj: Linear<B>,
    pub v_proj: Linear<B>,
    pub o_proj: Linear<B>,
}

/// Gated MLP of a block, no biases.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct LlamaMlp<B: Backend> {
    pub gate_proj: Linear<B>,
    pub up_proj: Linear<B>,
    pub down_proj: Linear<B>,
}

/// One block.
#[derive(Module, Debug)]
#[allow(missing_docs)]
pub struct LlamaLayer<B: Backend> {
    pub self_attn: LlamaAttention<B>,
    pub mlp: LlamaMlp<B>,
    pub input_layernorm: RmsNorm<B>,
    pub post_attention_layernorm: RmsNorm<B>,
}

/// The decoder; field names are the checkpoints'.
#[derive(Module, Debug)]
pub struct Llama<B: Backend> {
    /// `[vocab, d]`.
    pub embed_tokens: Embedding<B>,
    /// Blocks, first to last.
    pub layers: Vec<LlamaLayer<B>>,
    /// The norm before the head.
    pub norm: RmsNorm<B>,
    /// `[d, vocab]`; absent when the head is the embedding table.
    pub lm_head: Option<Linear<B>>,
    /// The configuration this was built from.
    pub config: LlamaConfig,
}

/// Keys and values of the positions seen so far.
#[derive(Clone, Debug)]
pub struct KvCache<B: Backend> {
    /// Per block: keys and values, each `[b, h_kv, seen, d_head]`.
    layers: Vec<Option<(Tensor<B, 4>, Tensor<B, 4>)>>,
    seen: usize,
    /// Per block the rotary position of the next token; they differ where tokens were dropped on the
    /// way and the rest renumbered.
    next: Vec<usize>,
}

impl<B: Backend> KvCache<B> {
    /// An empty cache for a decoder of `layers` blocks.
    pub fn new(layers: usize) -> Self {
        Self { layers: vec![None; layers], seen: 0, next: vec![0; layers] }
    }

    /// Positions in the cache.
    pub fn seen(&self) -> usize {
        self.seen
    }

    fn extend(
        &mut self,
        layer: usize,
        k: Tensor<B, 4>,
        v: Tensor<B, 4>,
    ) -> (Tensor<B, 4>, Tensor<B, 4>) {
        let (k, v) = match self.layers[layer].take() {
            Some((old_k, old_v)) => {
                (Tensor::cat(vec![old_k, k], 2), Tensor::cat(vec![old_v, v], 2))
            }
            None => (k, v),
        };
        self.layers[layer] = Some((k.clone(), v.clone()));
        (k, v)
    }
}

/// What a decoder forward may be given besides its embeddings.
#[derive(Debug)]
pub struct LlamaOptions<'a, B: Backend> {
    /// Rows of the flattened `[b * s]` whose output is wanted, in this order; all by default.
    pub rows: Option<&'a [usize]>,
    /// Adapters.
    pub lora: Option<&'a Lora<B>>,
    /// Adapter dropout; none outside training.
    pub dropout: Option<&'a DropoutStates>,
    /// Earlier positions; this forward's are appended.
    pub cache: Option<&'a mut KvCache<B>>,
    /// For each block, what its backward pass finds ready; by default every operation keeps what it needs. Not with a
    /// cache.
    pub keep: Option<&'a [Keep]>,
    /// Rotary position of each of the `[b * s]` rows; counted on from the cache by default.
    pub positions: Option<&'a [usize]>,
    /// Visual tokens to drop on the way.
    pub drop: Option<DropPlan>,
}

impl<B: Backend> Default for LlamaOptions<'_, B> {
    fn default() -> Self {
        Self {
            rows: None,
            lora: None,
            dropout: None,
            cache: None,
            keep: None,
            positions: None,
            drop: None,
        }
    }
}

impl LlamaConfig {
    /// A decoder with initial weights that are a function of `init`'s seed and path.
    pub fn init<B: Backend>(&self, init: &Init<'_, B>) -> Llama<B> {
        let (d, mlp) = (self.hidden_size, self.intermediate_size);
        let q = self.num_attention_heads * self.head_size();
        let kv = self.kv_heads() * self.head_size();
        // Without a fixed range: fan-in scaling, residual branches damped by the depth.
        let branch = 1.0 / (2.0 * self.num_hidden_layers as f64).sqrt();
        let linear = |at: Init<'_, B>, d_in: usize, d_out: usize, gain: f64| {
            let gain = self.initializer_range.map_or(gain, |std| std * (d_in as f64).sqrt());
            Linear::init(&at, d_in, d_out, false, gain)
        };
        let layer = |index: usize| {
            let at = init.at("layers").at(index);
            let attn = at.at("self_attn");
            LlamaLayer {
                self_attn: LlamaAttention {
                    q_proj: linear(attn.at("q_proj"), d, q, 1.0),
                    k_proj: linear(attn.at("k_proj"), d, kv, 1.0),
                    v_proj: linear(attn.at("v_proj"), d, kv, 1.0),
                    o_proj: linear(attn.at("o_proj"), q, d, branch),
                },
                mlp: LlamaMlp {
                    gate_proj: linear(at.at("mlp.gate_proj"), d, mlp, 1.0),
                    up_proj: linear(at.at("mlp.up_proj"), d, mlp, 1.0),
                    down_proj: linear(at.at("mlp.down_proj"), mlp, d, branch),
                },
                input_layernorm: RmsNorm::init(&at.at("input_layernorm"), d, self.rms_norm_eps),
                post_attention_layernorm: RmsNorm::init(
                    &at.at("post_attention_layernorm"),
                    d,
                    self.rms_norm_eps,
                ),
            }
        };
        // A tied table is also the head: logits of unit scale want rows of norm one or less.
        let own = if self.tie_word_embeddings { (d as f64).powf(-0.5) } else { 0.5 };
        let std = self.initializer_range.unwrap_or(own);
        Llama {
            embed_tokens: Embedding::init(&init.at("embed_tokens"), self.vocab_size, d, std),
            layers: (0..self.num_hidden_layers).map(layer).collect(),
            norm: RmsNorm::init(&init.at("norm"), d, self.rms_norm_eps),
            lm_head: (!self.tie_word_embeddings)
                .then(|| linear(init.at("lm_head"), d, self.vocab_size, 0.5)),
            config: self.clone(),
        }
    }

    /// Cosines and sines of the rotary embedding at `batch` rows of positions, each
    /// `[batch, seq, d_head / 2]`; computed in f64.
    pub fn rope_tables<B: Backend>(
        &self,
        positions: &[usize],
        batch: usize,
        device: &B::Device,
    ) -> (Tensor<B, 3>, Tensor<B, 3>) {
        let frequencies = self.rope_frequencies();
        let (half, seq) = (frequencies.len(), positions.len() / batch.max(1));
        let angles: Vec<f64> = positions
            .iter()
            .flat_map(|position| frequencies.iter().map(move |f| *position as f64 * f))
            .collect();
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f32> = angles.iter().map(|angle| f(*angle) as f32).collect();
            Tensor::from_data(TensorData::new(values, [batch, seq, half]), device)
        };
        (table(f64::cos), table(f64::sin))
    }
}

impl<B: Backend> Llama<B> {
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

    /// Final-norm output at the wanted rows: `[b, s, d] -> [rows, d]`.
    ///
    /// Sequences are right-padded; the mask is causal, so padding reaches no real position.
    pub fn forward(
        &self,
        inputs_embeds: Tensor<B, 3>,
        options: LlamaOptions<'_, B>,
    ) -> Tensor<B, 2> {
        let LlamaOptions { rows, lora, dropout, mut cache, keep, positions, mut drop } = options;
        let ([batch, mut seq, d], layers) = (inputs_embeds.dims(), self.layers.len());
        let device = inputs_embeds.device();
        let counted = |start: usize, seq: usize| {
            let counted: Vec<usize> = (start..start + seq).collect();
            self.config.rope_tables::<B>(&counted, 1, &device)
        };
        let mut start = cache.as_ref().and_then(|cache| cache.next.first().copied()).unwrap_or(0);
        let entered = seq;
        let mut rope = match positions {
            Some(positions) => self.config.rope_tables::<B>(positions, batch, &device),
            None => counted(start, seq),
        };
        let mut rows = rows.map(<[usize]>::to_vec);
        let mut states = dropout.cloned();
        let mut dropout = states.as_ref().map(|states| states.upload::<B>(&device));
        let mut x = inputs_embeds.reshape([batch * seq, d]); // [b * s, d]
        for (index, layer) in self.layers.iter().enumerate() {
            if let Some(cache) = &mut cache {
                if positions.is_none() && cache.next[index] != start {
                    start = cache.next[index];
                    rope = counted(start, seq);
                }
                let original = drop.as_ref().is_none_or(DropPlan::keeps_positions);
                cache.next[index] += if original { entered } else { seq };
            }
            let adapters = LayerAdapters { lora, layer: index, dropout: dropout.as_ref() };
            let last = index + 1 == layers;
            let wanted = rows.as_ref().filter(|_| last);
            x = match (keep, &cache, wanted) {
                (Some(keep), None, None) => {
                    let keep = keep.get(index).copied().unwrap_or_default();
                    self.block(layer, x, batch, &rope, adapters, keep)
                }
                _ => {
                    let cache = cache.as_deref_mut();
                    let mut attended = self.attend(layer, x.clone(), batch, &rope, adapters, cache);
                    let wanted_dropout = states.as_ref().zip(wanted);
                    let wanted_dropout = wanted_dropout
                        .map(|(states, rows)| states.select(rows).upload::<B>(&device));
                    let mut adapters = LayerAdapters { dropout: dropout.as_ref(), ..adapters };
                    if let Some(rows) = wanted {
                        let ids: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
                        let ids = TensorData::new(ids, [rows.len()]);
                        let ids = Tensor::<B, 1, Int>::from_data(ids, &device);
                        attended = select_rows(attended, ids.clone()); // [rows, h * d_head]
                        x = select_rows(x, ids); // [rows, d]
                        adapters.dropout = wanted_dropout.as_ref();
                    }
                    layer.finish(x, attended, adapters)
                }
            };
            let Some(plan) = &mut drop else { continue };
            let Some(next) = self.layers.get(index + 1) else { continue };
            let scores = |plan: &DropPlan| match plan.schedule.score() {
                DropScore::Uniform => uniform_scores(plan, index, layers, seq, &device),
                DropScore::InstructionAttention => {
                    self.instruction_attention(next, x.clone().detach(), &rope, plan.instruction())
                }
            };
            let place = (index, layers);
            let Some(dropped) = plan.drop_after(place, seq, rows.as_deref(), &device, scores)
            else {
                continue;
            };
            x = dropped.select(x, seq); // [b * s', d]
            rope = match plan.keeps_positions() {
                true => (dropped.select_each(rope.0), dropped.select_each(rope.1)),
                false => counted(start, dropped.seq),
            };
            // A mask belongs to a sample and a place in it, whatever token stands there.
            states = states.map(|states| states.select(&dropped.leading_rows(seq)));
            dropout = states.as_ref().map(|states| states.upload::<B>(&device));
            (rows, seq) = (dropped.rows, dropped.seq);
        }
        if let Some(cache) = cache {
            cache.seen += entered;
        }
        self.norm.forward(x) // [rows, d]
    }

    /// Attention of one position per sample over all positions up to it, mean over heads, by a
    /// block's weights without adapters: `[b * s, d] -> [b, s]`.
    fn instruction_attention(
        &self,
        layer: &LlamaLayer<B>,
        x: Tensor<B, 2>,
        (cos, sin): &(Tensor<B, 3>, Tensor<B, 3>),
        positions: &[usize],
    ) -> Tensor<B, 2> {
        let (batch, heads, kv_heads) =
            (positions.len(), self.config.num_attention_heads, self.config.kv_heads());
        let (seq, device) = (x.dims()[0] / batch, x.device());
        let x = layer.input_layernorm.forward(x);
        let rows: Vec<i64> =
            positions.iter().enumerate().map(|(b, at)| (b * seq + at) as i64).collect();
        let rows = Tensor::<B, 1, Int>::from_data(TensorData::new(rows, [batch]), &device);
        let q = layer.self_attn.q_proj.forward(x.clone().select(0, rows.clone()));
        let k = split_heads(layer.self_attn.k_proj.forward(x), batch, kv_heads);
        let k = dualspeed_ops::rope(k, cos.clone(), sin.clone()); // [b, h_kv, s, d_head]
        let at_rows = |table: &Tensor<B, 3>| {
            let half = table.dims()[2];
            let table = table.clone().expand([batch, seq, half]).reshape([batch * seq, half]);
            table.select(0, rows.clone()).reshape([batch, 1, half])
        };
        let q = dualspeed_ops::rope(split_heads(q, batch, heads), at_rows(cos), at_rows(sin));
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

    /// One block as one operation: `[b * s, d] -> [b * s, d]`.
    fn block(
        &self,
        layer: &LlamaLayer<B>,
        x: Tensor<B, 2>,
        batch: usize,
        (cos, sin): &(Tensor<B, 3>, Tensor<B, 3>),
        adapters: LayerAdapters<'_, B>,
        keep: Keep,
    ) -> Tensor<B, 2> {
        let config = adapters.lora.map(|lora| &lora.config);
        let ctx = BlockContext {
            batch,
            heads: self.config.num_attention_heads,
            kv_heads: self.config.kv_heads(),
            eps: self.config.rms_norm_eps,
            cos: cos.clone().into_primitive().tensor(),
            sin: sin.clone().into_primitive().tensor(),
            attention: AttentionSpec::causal(),
            lora_scale: config.map_or(0.0, LoraConfig::scale),
            dropout: config.zip(adapters.dropout).filter(|(config, _)| config.dropout > 0.0).map(
                |(config, keys)| BlockDropout {
                    keys: DropoutKeys::clone(keys),
                    p: config.dropout,
                    places: PerTarget::from_fn(|target| dropout_place(adapters.layer, target)),
                },
            ),
            rows: None,
            keep,
        };
        dualspeed_ops::decoder_block(x, layer.params(adapters), &ctx, None)
    }

    /// Attention of one block before its output projection: `[b * s, d] -> [b * s, h * d_head]`.
    fn attend(
        &self,
        layer: &LlamaLayer<B>,
        x: Tensor<B, 2>,
        batch: usize,
        (cos, sin): &(Tensor<B, 3>, Tensor<B, 3>),
        adapters: LayerAdapters<'_, B>,
        cache: Option<&mut KvCache<B>>,
    ) -> Tensor<B, 2> {
        let attn = &layer.self_attn;
        let (heads, kv_heads) = (self.config.num_attention_heads, self.config.kv_heads());
        let x = layer.input_layernorm.forward(x);
        let q = adapters.apply(&attn.q_proj, LoraTarget::QProj, x.clone());
        let k = adapters.apply(&attn.k_proj, LoraTarget::KProj, x.clone());
        let v = adapters.apply(&attn.v_proj, LoraTarget::VProj, x);
        let q = dualspeed_ops::rope(split_heads(q, batch, heads), cos.clone(), sin.clone());
        let k = dualspeed_ops::rope(split_heads(k, batch, kv_heads), cos.clone(), sin.clone());
        let v = split_heads(v, batch, kv_heads); // [b, h_kv, s, d_head]
        let (k, v) = match cache {
            Some(cache) => cache.extend(adapters.layer, k, v),
            None => (k, v),
        };
        let spec = AttentionSpec { causal: true, ..AttentionSpec::default() };
        merge_heads(dualspeed_ops::attention(q, k, v, &spec))
    }

    /// The decoder with the adapters folded into its weights.
    pub fn merge_lora(self, lora: &Lora<B>) -> Self {
        let scale = lora.config.scale();
        let layers = self
            .layers
            .into_iter()
            .zip(&lora.layers)
            .map(
                |(
                    LlamaLayer { self_attn, mlp, input_layernorm, post_attention_layernorm },
                    lora,
                )| {
                    LlamaLayer {
                        self_attn: LlamaAttention {
                            q_proj: merge(self_attn.q_proj, lora.q_proj.as_ref(), scale),
                            k_proj: merge(self_attn.k_proj, lora.k_proj.as_ref(), scale),
                            v_proj: merge(self_attn.v_proj, lora.v_proj.as_ref(), scale),
                            o_proj: merge(self_attn.o_proj, lora.o_proj.as_ref(), scale),
                        },
                        mlp: LlamaMlp {
                            gate_proj: merge(mlp.gate_proj, lora.gate_proj.as_ref(), scale),
                            up_proj: merge(mlp.up_proj, lora.up_proj.as_ref(), scale),
                            down_proj: merge(mlp.down_proj, lora.down_proj.as_ref(), scale),
                        },
                        input_layernorm,
                        post_attention_layernorm,
                    }
                },
            )
            .collect();
        Self { layers, ..self }
    }
}

impl<B: Backend> LlamaLayer<B> {
    /// The block's parameters, adapters included, as the block operation takes them.
    fn params(&self, adapters: LayerAdapters<'_, B>) -> BlockParams<B::FloatTensorPrimitive> {
        let linear = |linear: &Linear<B>, target: LoraTarget| BlockLinear {
            weight: linear.weight.val().into_primitive().tensor(),
            bias: linear.bias.as_ref().map(|bias| bias.val().into_primitive().tensor()),
            lora: adapters.pair(target).map(|pair| {
                let [a, b] = [&pair.lora_a, &pair.lora_b];
                (a.val().into_primitive().tensor(), b.val().into_primitive().tensor())
            }),
        };
        let (attn, mlp) = (&self.self_attn, &self.mlp);
        let norm = |norm: &RmsNorm<B>| norm.weight.val().into_primitive().tensor();
        BlockParams {
            input_layernorm: norm(&self.input_layernorm),
            post_attention_layernorm: norm(&self.post_attention_layernorm),
            q_norm: None,
            k_norm: None,
            linear: PerTarget {
                q_proj: linear(&attn.q_proj, LoraTarget::QProj),
                k_proj: linear(&attn.k_proj, LoraTarget::KProj),
                v_proj: linear(&attn.v_proj, LoraTarget::VProj),
                o_proj: linear(&attn.o_proj, LoraTarget::OProj),
                gate_proj: linear(&mlp.gate_proj, LoraTarget::GateProj),
                up_proj: linear(&mlp.up_proj, LoraTarget::UpProj),
                down_proj: linear(&mlp.down_proj, LoraTarget::DownProj),
            },
        }
    }

    /// Output projection and MLP, row by row: `[rows, d], [rows, h * d_head] -> [rows, d]`.
    fn finish(
        &self,
        x: Tensor<B, 2>,
        attended: Tensor<B, 2>,
        adapters: LayerAdapters<'_, B>,
    ) -> Tensor<B, 2> {
        let x = x + adapters.apply(&self.self_attn.o_proj, LoraTarget::OProj, attended);
        let normed = self.post_attention_layernorm.forward(x.clone());
        let gate = adapters.apply(&self.mlp.gate_proj, LoraTarget::GateProj, normed.clone());
        let up = adapters.apply(&self.mlp.up_proj, LoraTarget::UpProj, normed);
        let gated = dualspeed_ops::swiglu(gate, up);
        x + adapters.apply(&self.mlp.down_proj, LoraTarget::DownProj, gated)
    }
}
