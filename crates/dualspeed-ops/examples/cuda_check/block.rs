//! A whole decoder block: adapters, dropout, biases, norms of heads, wanted rows.

use burn::tensor::{DType, Tensor};
use burn_autodiff::Autodiff;
use dualspeed_ops::{
    AttentionSpec, Backend, BlockContext, BlockDropout, BlockLinear, BlockParams, DropoutKeys,
    Keep, PerTarget, SelectedRows, Target,
};

use crate::case::Case;
use crate::data::{Flat, flat, primitive, tensor};

pub const BATCH: usize = 2;
pub const D: usize = 256;
const MLP: usize = 328;
const RANK: usize = 8;

const PLACES: PerTarget<u64> = PerTarget {
    q_proj: 3,
    k_proj: 1,
    v_proj: 4,
    o_proj: 15,
    gate_proj: 9,
    up_proj: 2,
    down_proj: 6,
};

/// The layers with a bias in Qwen2.
const QKV: &[Target] = &[Target::QProj, Target::KProj, Target::VProj];

#[derive(Clone, Copy)]
pub struct Block {
    pub adapters: bool,
    pub dropout: bool,
    pub biases: &'static [Target],
    pub head_norms: bool,
    /// Whether the output of some rows only is wanted.
    pub some_rows: bool,
    pub keep: Keep,
    /// Of queries; of keys and values.
    pub heads: [usize; 2],
    pub head_dim: usize,
    pub seq: usize,
}

impl Block {
    /// As in Llama, two queries to a key head.
    fn new(adapters: bool, dropout: bool, keep: Keep) -> Self {
        let (biases, heads): (&[Target], _) = (&[], [4, 2]);
        let (head_norms, some_rows, head_dim, seq) = (false, false, 64, 45);
        Self { adapters, dropout, biases, head_norms, some_rows, keep, heads, head_dim, seq }
    }

    /// The block of Qwen2 with adapters.
    pub fn qwen2(keep: Keep) -> Self {
        Self { biases: QKV, ..Self::new(true, true, keep) }
    }

    /// All that a block can have, with heads wider than `d / heads`.
    pub fn with_everything(keep: Keep) -> Self {
        let block = Self::new(true, true, keep);
        Self { biases: &Target::ALL, head_norms: true, some_rows: true, head_dim: 96, ..block }
    }

    /// Input and output width of a layer.
    fn widths(&self, target: Target) -> [usize; 2] {
        let [q, kv] = self.heads.map(|heads| heads * self.head_dim);
        match target {
            Target::QProj => [D, q],
            Target::KProj | Target::VProj => [D, kv],
            Target::OProj => [q, D],
            Target::GateProj | Target::UpProj => [D, MLP],
            Target::DownProj => [MLP, D],
        }
    }

    /// Every third row of the last half, in no order.
    fn rows(&self) -> Vec<usize> {
        let rows = BATCH * self.seq;
        (rows / 2..rows).step_by(3).map(|row| rows + rows / 2 - 1 - row).collect()
    }

    /// Cosines and sines, `[1 or BATCH, seq, head_dim / 2]`.
    pub fn tables<B: Backend>(&self, dtype: DType) -> [Tensor<B, 3>; 2] {
        let half = self.head_dim / 2;
        let [heads, kv_heads] = self.heads;
        // A table for all rows, or for each.
        let tables = if heads == kv_heads { BATCH } else { 1 };
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f64> = (0..tables * self.seq * half)
                .map(|i| f((i * 7919 % 1000) as f64 / 160.0))
                .collect();
            tensor::<B, 3>(&values, [tables, self.seq, half], dtype)
        };
        [table(f64::cos), table(f64::sin)]
    }

    /// The parameters from flat inputs.
    pub fn params<B: Backend>(&self, x: &[Tensor<B, 1>]) -> BlockParams<B::FloatTensorPrimitive> {
        let mut at = vec![0; x.len()];
        let mut take = |input: usize, len: usize| {
            at[input] += len;
            x[input].clone().narrow(0, at[input] - len, len)
        };
        let [input_layernorm, post_attention_layernorm] = [(); 2].map(|()| primitive(take(1, D)));
        let [q_norm, k_norm] =
            [(); 2].map(|()| self.head_norms.then(|| primitive(take(1, self.head_dim))));
        let linear = PerTarget::from_fn(|target| {
            let [d_in, d_out] = self.widths(target);
            let weight = take(2, d_in * d_out).reshape([d_in, d_out]).mul_scalar(0.0625);
            let bias = self.biases.contains(&target);
            let bias = bias.then(|| primitive(take(3, d_out).mul_scalar(0.5)));
            let lora = self.adapters.then(|| {
                let input = x.len() - 1;
                let a = take(input, d_in * RANK).reshape([d_in, RANK]).mul_scalar(0.0625);
                let b = take(input, RANK * d_out).reshape([RANK, d_out]).mul_scalar(0.25);
                (primitive(a), primitive(b))
            });
            BlockLinear { weight: primitive(weight), bias, lora }
        });
        BlockParams { input_layernorm, post_attention_layernorm, q_norm, k_norm, linear }
    }

    /// How the block is run with such tables.
    pub fn context<B: Backend>(
        &self,
        [cos, sin]: [Tensor<B, 3>; 2],
        attention: AttentionSpec,
    ) -> BlockContext<B> {
        let device = B::Device::default();
        let [heads, kv_heads] = self.heads;
        let keys = (0..(BATCH * self.seq) as u64).map(|row| row * 7 + 1).collect();
        BlockContext {
            batch: BATCH,
            heads,
            kv_heads,
            eps: 1e-5,
            cos: primitive(cos),
            sin: primitive(sin),
            attention,
            lora_scale: 0.5,
            dropout: self.dropout.then(|| BlockDropout {
                keys: DropoutKeys::new(keys, &device),
                p: 0.25,
                places: PLACES,
            }),
            rows: self.some_rows.then(|| SelectedRows::new(&self.rows(), &device)),
            keep: self.keep,
        }
    }
}

pub fn all() -> Vec<Block> {
    let mut all = vec![
        Block::new(false, false, Keep::All),
        Block::new(true, false, Keep::All),
        Block::new(true, true, Keep::Products),
        Block::new(true, true, Keep::Activations),
        Block::new(true, true, Keep::All),
        Block::new(true, false, Keep::Attention),
        Block::new(true, true, Keep::Input),
        Block { biases: QKV, ..Block::new(false, false, Keep::All) },
        Block { head_norms: true, head_dim: 128, ..Block::new(false, false, Keep::All) },
        Block { some_rows: true, ..Block::new(true, true, Keep::All) },
    ];
    for keep in [Keep::Input, Keep::Attention, Keep::Products, Keep::Activations, Keep::All] {
        all.push(Block::qwen2(keep));
        all.push(Block::with_everything(keep));
    }
    // Short enough, and as many keys as queries: rotation and attention are one kernel.
    for (heads, seq, keep) in [
        ([4, 4], 45, Keep::All),
        ([4, 4], 64, Keep::Input),
        ([2, 2], 93, Keep::Products),
        ([2, 2], 120, Keep::Attention),
    ] {
        let head_dim = D / heads[0];
        all.push(Block { heads, head_dim, seq, ..Block::new(true, false, keep) });
    }
    let whole = Block { heads: [2, 2], head_dim: 128, seq: 93, ..Block::qwen2(Keep::Products) };
    all.push(Block { head_norms: true, some_rows: true, ..whole });
    all
}

impl Case for Block {
    fn name(&self) -> String {
        let Self { adapters, dropout, biases, head_norms, some_rows, keep, .. } = self;
        let Self { heads: [q, kv], head_dim, seq, .. } = self;
        format!(
            "block h{q}/{kv} d{head_dim} t{seq} adapters {adapters} dropout {dropout} biases {} norms {head_norms} rows {some_rows} {keep:?}",
            biases.len()
        )
    }

    fn depth(&self) -> f64 {
        3.0
    }

    fn inputs(&self) -> Vec<(usize, bool)> {
        let sum = |f: &dyn Fn(Target) -> usize| Target::ALL.into_iter().map(f).sum::<usize>();
        let head_norms = if self.head_norms { 2 * self.head_dim } else { 0 };
        let weights = sum(&|target| self.widths(target).iter().product());
        let biases: usize = self.biases.iter().map(|target| self.widths(*target)[1]).sum();
        let adapters = sum(&|target| RANK * self.widths(target).iter().sum::<usize>());
        let mut inputs =
            vec![(BATCH * self.seq * D, true), (2 * D + head_norms, false), (weights, true)];
        inputs.extend((biases > 0).then_some((biases, false)));
        inputs.extend(self.adapters.then_some((adapters, false)));
        inputs
    }

    fn run<B: Backend>(&self, slow: bool, x: &[Flat<B>]) -> Flat<B> {
        let wide = if slow { DType::F64 } else { DType::F32 };
        let lengths = Some(vec![self.seq, self.seq - 7]);
        let attention = AttentionSpec { key_lengths: lengths, ..AttentionSpec::causal() };
        let ctx = self.context::<Autodiff<B>>(self.tables(wide), attention);
        let input = x[0].clone().reshape([BATCH * self.seq, D]);
        flat::<Autodiff<B>, 2>(dualspeed_ops::decoder_block(input, self.params(x), &ctx, None))
    }
}
