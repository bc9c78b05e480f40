//! The block as one operation against the same block made of single operations.

use burn::tensor::{DType, Tensor};
use burn_autodiff::Autodiff;
use dualspeed_ops::*;

use crate::per_backend;
use crate::support::{Flat, assert_same, flat, primitive, tensor, values};

const BATCH: usize = 2;
const SEQ: usize = 5;
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const D: usize = 16;
const MLP: usize = 12;
const RANK: usize = 3;
const SCALE: f64 = 0.7;
const EPS: f64 = 1e-5;
const P: f64 = 0.3;
const PLACES: [u64; 7] = [3, 1, 4, 15, 9, 2, 6];

/// Input and output widths of the seven layers, in the order of the fields.
const LAYERS: [(usize, usize); 7] =
    [(D, D), (D, D / 2), (D, D / 2), (D, D), (D, MLP), (D, MLP), (MLP, D)];

/// Everything tracked, from one flat vector.
struct Block<B: Backend> {
    x: Tensor<B, 2>,
    norms: [Tensor<B, 1>; 2],
    weights: Vec<Tensor<B, 2>>,
    lora: Vec<Option<(Tensor<B, 2>, Tensor<B, 2>)>>,
}

fn numbers(adapters: bool) -> usize {
    let rank = if adapters { RANK } else { 0 };
    2 * D + LAYERS.iter().map(|(i, o)| i * o + rank * (i + o)).sum::<usize>()
}

fn unpack<B: Backend>(x: &Tensor<B, 1>, all: &Tensor<B, 1>, adapters: bool) -> Block<B> {
    let mut at = 0;
    let mut take = |len: usize| {
        at += len;
        all.clone().narrow(0, at - len, len)
    };
    let norms = [take(D), take(D)];
    let (mut weights, mut lora) = (Vec::new(), Vec::new());
    for (d_in, d_out) in LAYERS {
        weights.push(take(d_in * d_out).reshape([d_in, d_out]).mul_scalar(0.3));
        lora.push(adapters.then(|| {
            let a = take(d_in * RANK).reshape([d_in, RANK]);
            (a, take(RANK * d_out).reshape([RANK, d_out]).mul_scalar(0.3))
        }));
    }
    Block { x: x.clone().reshape([BATCH * SEQ, D]), norms, weights, lora }
}

fn rotary<B: Backend>(dtype: DType) -> [Tensor<B, 3>; 2] {
    let half = D / HEADS / 2;
    let angles = values(SEQ * half, 5);
    let table = |f: fn(f64) -> f64| {
        let values: Vec<f64> = angles.iter().map(|angle| f(*angle)).collect();
        tensor::<B, 3>(&values, [1, SEQ, half], dtype)
    };
    [table(f64::cos), table(f64::sin)]
}

fn spec() -> AttentionSpec {
    AttentionSpec { causal: true, key_lengths: Some(vec![5, 4]), ..AttentionSpec::default() }
}

fn keys<B: Backend>() -> DropoutKeys<B> {
    DropoutKeys::new(
        (0..(BATCH * SEQ) as u64).map(|row| row * 7 + 1).collect(),
        &Default::default(),
    )
}

fn as_one<B: Backend>(block: Block<B>, keep: Keep, dropout: bool) -> Tensor<B, 1> {
    let [cos, sin] = rotary::<B>(block.x.dtype());
    let ctx = BlockContext {
        batch: BATCH,
        heads: HEADS,
        kv_heads: KV_HEADS,
        eps: EPS,
        cos: primitive(cos),
        sin: primitive(sin),
        attention: spec(),
        lora_scale: SCALE,
        dropout: dropout.then(|| BlockDropout { keys: keys(), p: P, places: PLACES }),
        keep,
    };
    let [input_layernorm, post_attention_layernorm] = block.norms.map(primitive);
    let mut layers = block.weights.into_iter().zip(block.lora).map(|(weight, lora)| BlockLinear {
        weight: primitive(weight),
        lora: lora.map(|(a, b)| (primitive(a), primitive(b))),
    });
    let mut next = || layers.next().unwrap();
    let params = BlockParams {
        input_layernorm,
        q_proj: next(),
        k_proj: next(),
        v_proj: next(),
        o_proj: next(),
        post_attention_layernorm,
        gate_proj: next(),
        up_proj: next(),
        down_proj: next(),
    };
    flat(decoder_block(block.x, params, &ctx))
}

fn of_single_operations<B: Backend>(block: Block<B>, dropout: bool) -> Tensor<B, 1> {
    let [cos, sin] = rotary::<B>(block.x.dtype());
    let apply = |index: usize, x: Tensor<B, 2>| {
        let weight = block.weights[index].clone();
        let Some((a, b)) = block.lora[index].clone() else { return linear(x, weight, None) };
        let dropout = dropout.then(|| Dropout { keys: keys(), place: PLACES[index], p: P });
        lora_linear(x, weight, a, b, SCALE, dropout)
    };
    let split = |x: Tensor<B, 2>, heads: usize| {
        let width = x.dims()[1];
        x.reshape([BATCH, SEQ, heads, width / heads]).swap_dims(1, 2)
    };
    let [first, second] = block.norms.clone();
    let normed = rms_norm(block.x.clone(), first, EPS);
    let q = rope(split(apply(0, normed.clone()), HEADS), cos.clone(), sin.clone());
    let k = rope(split(apply(1, normed.clone()), KV_HEADS), cos, sin);
    let v = split(apply(2, normed), KV_HEADS);
    let attended = attention(q, k, v, &spec()).swap_dims(1, 2).reshape([BATCH * SEQ, D]);
    let mid = block.x.clone() + apply(3, attended);
    let normed = rms_norm(mid.clone(), second, EPS);
    let gated = swiglu(apply(4, normed.clone()), apply(5, normed));
    flat(mid + apply(6, gated))
}

fn equals_its_parts_whatever_is_kept<B: Backend>(_: usize) {
    for (adapters, dropout) in [(false, false), (true, false), (true, true)] {
        let inputs = [values(BATCH * SEQ * D, 1), values(numbers(adapters), 2)];
        for keep in [Keep::Input, Keep::Attention, Keep::Products, Keep::Activations, Keep::All] {
            let one = |x: &[Flat<B>]| as_one(unpack(&x[0], &x[1], adapters), keep, dropout);
            let parts =
                |x: &[Flat<B>]| of_single_operations(unpack(&x[0], &x[1], adapters), dropout);
            let what = format!("adapters {adapters}, dropout {dropout}, {keep:?}");
            assert_same::<B>(&what, &inputs, 2e-5, &one, &parts);
        }
    }
}

/// As in a LoRA run: only the adapters are tracked, with and without a tracked input.
fn only_adapters_are_trained<B: Backend>(_: usize) {
    type T<B, const D: usize> = Tensor<Autodiff<B>, D>;
    let x = values(BATCH * SEQ * D, 1);
    let all = values(numbers(true), 2);
    let gradients = |one: bool, tracked: bool| {
        let x = tensor::<Autodiff<B>, 1>(&x, [x.len()], DType::F32);
        let x = if tracked { x.require_grad() } else { x };
        let all = tensor::<Autodiff<B>, 1>(&all, [all.len()], DType::F32);
        let mut block = unpack(&x, &all, true);
        let leaf = |t: T<B, 2>| T::<B, 2>::from_inner(t.inner()).require_grad();
        block.lora =
            block.lora.into_iter().map(|pair| pair.map(|(a, b)| (leaf(a), leaf(b)))).collect();
        let leaves: Vec<_> =
            block.lora.iter().flatten().flat_map(|(a, b)| [a.clone(), b.clone()]).collect();
        let y =
            if one { as_one(block, Keep::Input, true) } else { of_single_operations(block, true) };
        let weights = tensor::<Autodiff<B>, 1>(&values(y.dims()[0], 3), y.dims(), DType::F32);
        let grads = (y * weights).sum().backward();
        let mut found: Vec<_> =
            leaves.iter().map(|leaf| crate::support::to_vec(leaf.grad(&grads).unwrap())).collect();
        found.extend(x.grad(&grads).map(crate::support::to_vec));
        found
    };
    for tracked in [false, true] {
        let (one, parts) = (gradients(true, tracked), gradients(false, tracked));
        assert_eq!(one.len(), 14 + usize::from(tracked));
        for (index, (one, parts)) in one.iter().zip(&parts).enumerate() {
            let what = format!("gradient {index}, input tracked: {tracked}");
            crate::support::assert_close(&what, one, parts, 2e-5);
        }
    }
}

/// Values are 0 or `1 / (1 - p)` at the stated rate, and the same for a row wherever it stands.
fn masks_are_functions_of_their_keys<B: Backend>(_: usize) {
    let device = Default::default();
    let mask = |rows: Vec<u64>, place: u64, d: usize| {
        let ones = Tensor::<B, 2>::ones([rows.len(), d], &device);
        let keys = DropoutKeys::<B>::new(rows, &device);
        crate::support::to_vec(dropout(ones, &Dropout { keys, place, p: 0.25 }))
    };
    let big = mask((0..64).collect(), 5, 250);
    let kept = big.iter().filter(|value| **value > 0.0).count() as f64 / big.len() as f64;
    assert!((kept - 0.75).abs() < 0.02, "{kept}");
    assert!(big.iter().all(|value| *value == 0.0 || (value - 4.0 / 3.0).abs() < 1e-6));
    assert_eq!(
        mask(vec![9, 3], 5, 250),
        [&big[9 * 250..10 * 250], &big[3 * 250..4 * 250]].concat()
    );
    assert_ne!(mask(vec![9], 6, 250), big[9 * 250..10 * 250]);
}

per_backend!(
    equals_its_parts_whatever_is_kept,
    only_adapters_are_trained,
    masks_are_functions_of_their_keys,
);
