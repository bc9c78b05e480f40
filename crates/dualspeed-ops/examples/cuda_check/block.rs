//! A whole decoder block, with adapters and dropout.

use burn::tensor::{DType, Tensor};
use burn_autodiff::Autodiff;
use dualspeed_ops::{
    AttentionSpec, Backend, BlockContext, BlockDropout, BlockLinear, BlockParams, DropoutKeys, Keep,
};

use crate::case::Case;
use crate::data::{Flat, flat, primitive, tensor};

const BATCH: usize = 2;
const D: usize = 256;
const MLP: usize = 328;
const RANK: usize = 8;

pub struct Block {
    adapters: bool,
    dropout: bool,
    keep: Keep,
    /// Of queries; of keys and values.
    heads: [usize; 2],
    seq: usize,
}

impl Block {
    /// Input and output widths of the seven layers, in the order of the fields.
    fn layers(&self) -> [(usize, usize); 7] {
        let [heads, kv_heads] = self.heads;
        let kv = D / heads * kv_heads;
        [(D, D), (D, kv), (D, kv), (D, D), (D, MLP), (D, MLP), (MLP, D)]
    }
}

pub fn all() -> Vec<Block> {
    let (heads, seq) = ([4, 2], 45);
    let block = |adapters, dropout, keep| Block { adapters, dropout, keep, heads, seq };
    let mut all = vec![
        block(false, false, Keep::All),
        block(true, false, Keep::All),
        block(true, true, Keep::Products),
        block(true, true, Keep::Activations),
        block(true, true, Keep::All),
        block(true, false, Keep::Attention),
        block(true, true, Keep::Input),
    ];
    // Short enough, and as many keys as queries: rotation and attention are one kernel.
    for (heads, seq, keep) in [
        ([4, 4], 45, Keep::All),
        ([4, 4], 64, Keep::Input),
        ([2, 2], 93, Keep::Products),
        ([2, 2], 120, Keep::Attention),
    ] {
        all.push(Block { adapters: true, dropout: false, keep, heads, seq });
    }
    all
}

impl Case for Block {
    fn name(&self) -> String {
        let Self { adapters, dropout, keep, heads: [q, kv], seq } = self;
        format!("block h{q}/{kv} t{seq} adapters {adapters} dropout {dropout} {keep:?}")
    }

    fn depth(&self) -> f64 {
        3.0
    }

    fn inputs(&self) -> Vec<(usize, bool)> {
        let weights = self.layers().iter().map(|(i, o)| i * o).sum();
        let adapters: usize = self.layers().iter().map(|(i, o)| RANK * (i + o)).sum();
        let mut inputs = vec![(BATCH * self.seq * D, true), (2 * D, false), (weights, true)];
        inputs.extend(self.adapters.then_some((adapters, false)));
        inputs
    }

    fn run<B: Backend>(&self, slow: bool, x: &[Flat<B>]) -> Flat<B> {
        type A<B> = Autodiff<B>;
        let wide = if slow { DType::F64 } else { DType::F32 };
        let ([heads, kv_heads], seq) = (self.heads, self.seq);
        let half = D / heads / 2;
        // A table for all rows, or for each.
        let tables = if heads == kv_heads { BATCH } else { 1 };
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f64> =
                (0..tables * seq * half).map(|i| f((i * 7919 % 1000) as f64 / 160.0)).collect();
            primitive(tensor::<A<B>, 3>(&values, [tables, seq, half], wide))
        };
        let widths = self.layers();
        let (mut weight_at, mut adapter_at) = (0, 0);
        let take = |from: &Flat<B>, at: &mut usize, shape: [usize; 2], scale: f64| {
            let (start, len) = (*at, shape[0] * shape[1]);
            *at += len;
            let part: Tensor<A<B>, 2> = from.clone().narrow(0, start, len).reshape(shape);
            primitive(part.mul_scalar(scale))
        };
        let mut layers = widths.iter().map(|(d_in, d_out)| BlockLinear {
            weight: take(&x[2], &mut weight_at, [*d_in, *d_out], 0.0625),
            lora: self.adapters.then(|| {
                let a = take(&x[3], &mut adapter_at, [*d_in, RANK], 0.0625);
                (a, take(&x[3], &mut adapter_at, [RANK, *d_out], 0.25))
            }),
        });
        let mut next = || layers.next().unwrap_or_else(|| unreachable!("seven layers"));
        let params = BlockParams {
            input_layernorm: primitive(x[1].clone().narrow(0, 0, D)),
            q_proj: next(),
            k_proj: next(),
            v_proj: next(),
            o_proj: next(),
            post_attention_layernorm: primitive(x[1].clone().narrow(0, D, D)),
            gate_proj: next(),
            up_proj: next(),
            down_proj: next(),
        };
        let rows = (0..(BATCH * self.seq) as u64).map(|row| row * 7 + 1).collect();
        let keys = DropoutKeys::new(rows, &Default::default());
        let ctx = BlockContext::<A<B>> {
            batch: BATCH,
            heads,
            kv_heads,
            eps: 1e-5,
            cos: table(f64::cos),
            sin: table(f64::sin),
            attention: AttentionSpec {
                causal: true,
                key_lengths: Some(vec![seq, seq - 7]),
                ..AttentionSpec::default()
            },
            lora_scale: 0.5,
            dropout: self.dropout.then(|| BlockDropout {
                keys,
                p: 0.25,
                places: [3, 1, 4, 15, 9, 2, 6],
            }),
            keep: self.keep,
        };
        let input = x[0].clone().reshape([BATCH * self.seq, D]);
        flat::<A<B>, 2>(dualspeed_ops::decoder_block(input, params, &ctx))
    }
}
