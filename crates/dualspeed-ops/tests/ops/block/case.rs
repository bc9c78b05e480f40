//! A decoder block from flat vectors, as one operation and made of single operations.

use burn::tensor::{DType, Int, Tensor, TensorData};
use dualspeed_ops::*;

use crate::support::{flat, primitive, tensor, values, wrap};

pub const BATCH: usize = 2;
pub const SEQ: usize = 5;
const HEADS: usize = 4;
pub const D: usize = 16;
const MLP: usize = 12;
const RANK: usize = 3;
const SCALE: f64 = 0.7;
const EPS: f64 = 1e-5;
const P: f64 = 0.3;

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
pub const QKV: &[Target] = &[Target::QProj, Target::KProj, Target::VProj];

#[derive(Clone, Debug)]
pub struct Case {
    pub adapters: bool,
    pub dropout: bool,
    pub biases: &'static [Target],
    pub head_norms: bool,
    /// Rows whose output is wanted.
    pub rows: Option<Vec<usize>>,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub key_lengths: Option<Vec<usize>>,
}

impl Default for Case {
    /// As in Llama, with two queries to a key head.
    fn default() -> Self {
        Self {
            adapters: false,
            dropout: false,
            biases: &[],
            head_norms: false,
            rows: None,
            kv_heads: 2,
            head_dim: D / HEADS,
            key_lengths: Some(vec![5, 4]),
        }
    }
}

impl Case {
    pub fn with_adapters(dropout: bool) -> Self {
        Self { adapters: true, dropout, ..Self::default() }
    }

    /// Everything that a block can have, with heads wider than `d / heads`.
    pub fn with_everything() -> Self {
        Self {
            adapters: true,
            dropout: true,
            biases: &Target::ALL,
            head_norms: true,
            // One twice, one of the first sequence's, not in order.
            rows: Some(vec![9, 3, 7, 9]),
            head_dim: 6,
            ..Self::default()
        }
    }

    /// Input and output width of a layer.
    fn widths(&self, target: Target) -> [usize; 2] {
        let (q, kv) = (HEADS * self.head_dim, self.kv_heads * self.head_dim);
        match target {
            Target::QProj => [D, q],
            Target::KProj | Target::VProj => [D, kv],
            Target::OProj => [q, D],
            Target::GateProj | Target::UpProj => [D, MLP],
            Target::DownProj => [MLP, D],
        }
    }

    /// Lengths of the flat inputs: activations, norms, weights, and biases and adapters where there are some.
    pub fn lens(&self) -> Vec<usize> {
        let sum = |f: &dyn Fn(Target) -> usize| Target::ALL.into_iter().map(f).sum::<usize>();
        let head_norms = if self.head_norms { 2 * self.head_dim } else { 0 };
        let weights = sum(&|target| self.widths(target).iter().product());
        let biases: usize = self.biases.iter().map(|target| self.widths(*target)[1]).sum();
        let adapters = sum(&|target| RANK * self.widths(target).iter().sum::<usize>());
        let mut lens = vec![BATCH * SEQ * D, 2 * D + head_norms, weights];
        lens.extend((!self.biases.is_empty()).then_some(biases));
        lens.extend(self.adapters.then_some(adapters));
        lens
    }

    pub fn inputs(&self) -> Vec<Vec<f64>> {
        self.lens().into_iter().enumerate().map(|(i, len)| values(len, 1 + i as u64)).collect()
    }

    /// The parameters; `f` sees the tensors first.
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
            let weight = take(2, d_in * d_out).reshape([d_in, d_out]).mul_scalar(0.3);
            let bias = self.biases.contains(&target).then(|| primitive(take(3, d_out)));
            let lora = self.adapters.then(|| {
                let input = x.len() - 1;
                let a = take(input, d_in * RANK).reshape([d_in, RANK]);
                let b = take(input, RANK * d_out).reshape([RANK, d_out]).mul_scalar(0.3);
                (primitive(a), primitive(b))
            });
            BlockLinear { weight: primitive(weight), bias, lora }
        });
        BlockParams { input_layernorm, post_attention_layernorm, q_norm, k_norm, linear }
    }

    /// Cosines and sines of all positions, `[1, SEQ, head_dim / 2]`.
    pub fn rotary<B: Backend>(&self, dtype: DType) -> [Tensor<B, 3>; 2] {
        let half = self.head_dim / 2;
        let angles = values(SEQ * half, 5);
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f64> = angles.iter().map(|angle| f(*angle)).collect();
            tensor::<B, 3>(&values, [1, SEQ, half], dtype)
        };
        [table(f64::cos), table(f64::sin)]
    }

    fn spec(&self) -> AttentionSpec {
        AttentionSpec { key_lengths: self.key_lengths.clone(), ..AttentionSpec::causal() }
    }

    pub fn context<B: Backend>(
        &self,
        [cos, sin]: [Tensor<B, 3>; 2],
        keep: Keep,
    ) -> BlockContext<B> {
        let device = B::Device::default();
        BlockContext {
            batch: BATCH,
            heads: HEADS,
            kv_heads: self.kv_heads,
            eps: EPS,
            cos: primitive(cos),
            sin: primitive(sin),
            attention: self.spec(),
            lora_scale: SCALE,
            dropout: self.dropout.then(|| BlockDropout { keys: keys(None), p: P, places: PLACES }),
            rows: self.rows.as_ref().map(|rows| SelectedRows::new(rows, &device)),
            keep,
        }
    }

    pub fn as_one<B: Backend>(&self, x: &[Tensor<B, 1>], keep: Keep) -> Tensor<B, 1> {
        let ctx = self.context(self.rotary::<B>(x[0].dtype()), keep);
        let input = x[0].clone().reshape([BATCH * SEQ, D]);
        flat(decoder_block(input, self.params(x), &ctx, None))
    }

    pub fn of_single_operations<B: Backend>(&self, x: &[Tensor<B, 1>]) -> Tensor<B, 1> {
        self.apart(&x[0], self.params(x))
    }

    /// The block of single operations, each a node of the graph.
    pub fn apart<B: Backend>(
        &self,
        x: &Tensor<B, 1>,
        params: BlockParams<B::FloatTensorPrimitive>,
    ) -> Tensor<B, 1> {
        let [cos, sin] = self.rotary::<B>(x.dtype());
        let x = x.clone().reshape([BATCH * SEQ, D]);
        let apply = |target: Target, x: Tensor<B, 2>, rows: Option<&[usize]>| {
            let BlockLinear { weight, bias, lora } = params.linear.get(target).clone();
            let bias = bias.map(|bias| wrap::<B, 1>(bias));
            let Some((a, b)) = lora else { return linear(x, wrap(weight), bias) };
            let (place, p) = (*PLACES.get(target), P);
            let dropout = self.dropout.then(|| Dropout { keys: keys(rows), place, p });
            lora_linear(x, wrap(weight), bias, wrap(a), wrap(b), SCALE, dropout)
        };
        let split = |x: Tensor<B, 2>, heads: usize, norm: &Option<B::FloatTensorPrimitive>| {
            let x = x.reshape([BATCH, SEQ, heads, self.head_dim]);
            let x = match norm {
                Some(weight) => rms_norm(x, wrap(weight.clone()), EPS),
                None => x,
            };
            x.swap_dims(1, 2)
        };
        let wanted = self.rows.as_deref();
        let select = |x: Tensor<B, 2>| match wanted {
            Some(rows) => {
                let ids: Vec<i64> = rows.iter().map(|row| *row as i64).collect();
                let ids = TensorData::new(ids, [rows.len()]);
                select_rows(x, Tensor::<B, 1, Int>::from_data(ids, &B::Device::default()))
            }
            None => x,
        };
        let normed = rms_norm(x.clone(), wrap(params.input_layernorm.clone()), EPS);
        let [q, k, v] = [Target::QProj, Target::KProj, Target::VProj]
            .map(|target| apply(target, normed.clone(), None));
        let q = rope(split(q, HEADS, &params.q_norm), cos.clone(), sin.clone());
        let k = rope(split(k, self.kv_heads, &params.k_norm), cos, sin);
        let v = split(v, self.kv_heads, &None);
        let attended = attention(q, k, v, &self.spec()).swap_dims(1, 2);
        let attended = select(attended.reshape([BATCH * SEQ, HEADS * self.head_dim]));
        let mid = select(x) + apply(Target::OProj, attended, wanted);
        let normed = rms_norm(mid.clone(), wrap(params.post_attention_layernorm.clone()), EPS);
        let gate = apply(Target::GateProj, normed.clone(), wanted);
        let gated = swiglu(gate, apply(Target::UpProj, normed, wanted));
        flat(mid + apply(Target::DownProj, gated, wanted))
    }
}

/// Dropout keys of all rows, or of some.
fn keys<B: Backend>(rows: Option<&[usize]>) -> DropoutKeys<B> {
    let key = |row: usize| row as u64 * 7 + 1;
    let keys = match rows {
        Some(rows) => rows.iter().map(|row| key(*row)).collect(),
        None => (0..BATCH * SEQ).map(key).collect(),
    };
    DropoutKeys::new(keys, &Default::default())
}
