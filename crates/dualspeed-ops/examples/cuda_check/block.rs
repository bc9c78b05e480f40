//! A whole decoder block, with adapters and dropout.

use burn::tensor::{DType, Tensor};
use burn_autodiff::Autodiff;
use dualspeed_ops::{
    AttentionSpec, Backend, BlockContext, BlockDropout, BlockLinear, BlockParams, DropoutKeys, Keep,
};

use crate::case::Case;
use crate::data::{Flat, flat, primitive, tensor};

const BATCH: usize = 2;
const SEQ: usize = 45;
const D: usize = 256;
const MLP: usize = 328;
const RANK: usize = 8;
/// Input and output widths of the seven layers, in the order of the fields.
const LAYERS: [(usize, usize); 7] =
    [(D, D), (D, D / 2), (D, D / 2), (D, D), (D, MLP), (D, MLP), (MLP, D)];

pub struct Block {
    adapters: bool,
    dropout: bool,
    keep: Keep,
}

pub fn all() -> Vec<Block> {
    let block = |adapters, dropout, keep| Block { adapters, dropout, keep };
    vec![
        block(false, false, Keep::All),
        block(true, false, Keep::All),
        block(true, true, Keep::Products),
        block(true, true, Keep::Activations),
        block(true, true, Keep::All),
        block(true, false, Keep::Attention),
        block(true, true, Keep::Input),
    ]
}

impl Case for Block {
    fn name(&self) -> String {
        let Self { adapters, dropout, keep } = self;
        format!("block adapters {adapters} dropout {dropout} {keep:?}")
    }

    fn depth(&self) -> f64 {
        3.0
    }

    fn inputs(&self) -> Vec<(usize, bool)> {
        let weights = LAYERS.iter().map(|(i, o)| i * o).sum();
        let adapters: usize = LAYERS.iter().map(|(i, o)| RANK * (i + o)).sum();
        let mut inputs = vec![(BATCH * SEQ * D, true), (2 * D, false), (weights, true)];
        inputs.extend(self.adapters.then_some((adapters, false)));
        inputs
    }

    fn run<B: Backend>(&self, slow: bool, x: &[Flat<B>]) -> Flat<B> {
        type A<B> = Autodiff<B>;
        let wide = if slow { DType::F64 } else { DType::F32 };
        let half = D / 4 / 2;
        let table = |f: fn(f64) -> f64| {
            let values: Vec<f64> =
                (0..SEQ * half).map(|i| f((i * 7919 % 1000) as f64 / 160.0)).collect();
            primitive(tensor::<A<B>, 3>(&values, [1, SEQ, half], wide))
        };
        let (mut weight_at, mut adapter_at) = (0, 0);
        let take = |from: &Flat<B>, at: &mut usize, shape: [usize; 2], scale: f64| {
            let (start, len) = (*at, shape[0] * shape[1]);
            *at += len;
            let part: Tensor<A<B>, 2> = from.clone().narrow(0, start, len).reshape(shape);
            primitive(part.mul_scalar(scale))
        };
        let mut layers = LAYERS.iter().map(|(d_in, d_out)| BlockLinear {
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
        let rows = (0..(BATCH * SEQ) as u64).map(|row| row * 7 + 1).collect();
        let keys = DropoutKeys::new(rows, &Default::default());
        let ctx = BlockContext::<A<B>> {
            batch: BATCH,
            heads: 4,
            kv_heads: 2,
            eps: 1e-5,
            cos: table(f64::cos),
            sin: table(f64::sin),
            attention: AttentionSpec {
                causal: true,
                key_lengths: Some(vec![SEQ, SEQ - 7]),
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
        let input = x[0].clone().reshape([BATCH * SEQ, D]);
        flat::<A<B>, 2>(dualspeed_ops::decoder_block(input, params, &ctx))
    }
}
