//! The block as one operation against the same block made of single operations.

pub mod case;

use burn::tensor::backend::AutodiffBackend as _;
use burn::tensor::ops::{FloatTensor, FloatTensorOps as _};
use burn::tensor::{DType, Tensor, TensorMetadata as _};
use burn_autodiff::Autodiff;
use dualspeed_ops::*;

use crate::per_backend;
use crate::support::{Flat, assert_close, assert_same, flat, tensor, to_vec, values, wrap};
use case::{BATCH, Case, D, QKV, SEQ};

const KEEPS: [Keep; 5] =
    [Keep::Input, Keep::Attention, Keep::Products, Keep::Activations, Keep::All];

/// Llama, Qwen2, Qwen3, and what else the flags allow; a third of them on slow backends.
fn cases(thirds: usize) -> Vec<Case> {
    let rows = Some(vec![9, 3, 7]);
    let all = [
        Case::default(),
        Case::with_adapters(false),
        Case::with_adapters(true),
        Case::with_everything(),
        Case { biases: QKV, ..Case::default() },
        Case { biases: QKV, ..Case::with_adapters(true) },
        Case { biases: &Target::ALL, kv_heads: 1, ..Case::with_adapters(false) },
        Case { head_norms: true, head_dim: 6, ..Case::default() },
        Case { rows: rows.clone(), ..Case::default() },
        Case { rows, kv_heads: 4, ..Case::with_adapters(true) },
    ];
    all.into_iter().take(4 * thirds).collect()
}

fn equals_its_parts_whatever_is_kept<B: Backend>(thirds: usize) {
    for case in cases(thirds) {
        for keep in KEEPS {
            let one = |x: &[Flat<B>]| case.as_one(x, keep);
            let parts = |x: &[Flat<B>]| case.of_single_operations(x);
            assert_same::<B>(&format!("{case:?}, {keep:?}"), &case.inputs(), 2e-5, &one, &parts);
        }
    }
}

/// On the host the output has the very bits of the single operations' output, with and without gradients.
fn has_the_bits_of_its_parts<B: Backend>(thirds: usize) {
    if !B::computes_on_host() {
        return;
    }
    for case in cases(thirds) {
        let leaves: Vec<Tensor<B, 1>> =
            case.inputs().iter().map(|x| tensor(x, [x.len()], DType::F32)).collect();
        let parts = to_vec(case.of_single_operations(&leaves));
        assert_eq!(to_vec(case.as_one(&leaves, Keep::All)), parts, "{case:?}");
        let leaves: Vec<Flat<B>> =
            leaves.into_iter().map(|leaf| Tensor::from_inner(leaf).require_grad()).collect();
        let tracked = case.as_one(&leaves, Keep::All).inner();
        assert_eq!(to_vec(tracked), parts, "{case:?}, tracked");
    }
}

type P<B> = FloatTensor<Autodiff<B>>;

fn layers<T>(params: &mut BlockParams<T>) -> [&mut BlockLinear<T>; 7] {
    let PerTarget { q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj } =
        &mut params.linear;
    [q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj]
}

/// Only some parameters are trained, as in a LoRA run or when biases or norms alone are: they get the gradients that single
/// operations give them, with and without a tracked input.
fn only_some_parameters_are_trained<B: Backend>(_: usize) {
    let case = Case::with_everything();
    type Choice<B> = fn(&mut BlockParams<P<B>>) -> Vec<&mut P<B>>;
    let choices: [(&str, Choice<B>, usize); 6] = [
        (
            "adapters",
            |params| {
                let pairs = layers(params).into_iter().filter_map(|layer| layer.lora.as_mut());
                pairs.flat_map(|(a, b)| [a, b]).collect()
            },
            14,
        ),
        (
            "biases",
            |params| layers(params).into_iter().filter_map(|layer| layer.bias.as_mut()).collect(),
            7,
        ),
        ("one bias", |params| params.linear.v_proj.bias.iter_mut().collect(), 1),
        (
            "norms of heads",
            |params| params.q_norm.iter_mut().chain(&mut params.k_norm).collect(),
            2,
        ),
        (
            "norms",
            |params| vec![&mut params.input_layernorm, &mut params.post_attention_layernorm],
            2,
        ),
        ("one weight", |params| vec![&mut params.linear.up_proj.weight], 1),
    ];
    let gradients = |choice: Choice<B>, one: bool, track_input: bool| {
        let x: Vec<Flat<B>> =
            case.inputs().iter().map(|x| tensor(x, [x.len()], DType::F32)).collect();
        let input = if track_input { x[0].clone().require_grad() } else { x[0].clone() };
        let mut params = case.params(&x);
        let mut leaves = Vec::new();
        for param in choice(&mut params) {
            *param = Autodiff::<B>::float_set_require_grad(param.clone(), true);
            leaves.push(param.clone());
        }
        let y = match one {
            true => {
                let ctx = case.context(case.rotary(DType::F32), Keep::Input);
                flat(decoder_block(input.clone().reshape([BATCH * SEQ, D]), params, &ctx, None))
            }
            false => case.apart(&input, params),
        };
        let weights = tensor(&values(y.dims()[0], 3), y.dims(), DType::F32);
        let grads = (y * weights).sum().backward();
        let of = |leaf: &P<B>| {
            Autodiff::<B>::grad(leaf, &grads).map(|grad| {
                let len = grad.shape().num_elements();
                to_vec(wrap::<B, 1>(B::float_reshape(grad, [len].into())))
            })
        };
        let mut found: Vec<_> = leaves.iter().map(of).collect();
        found.push(input.grad(&grads).map(to_vec));
        found
    };
    for (name, choice, count) in choices {
        for track_input in [false, true] {
            let what = format!("{name}, input tracked: {track_input}");
            let (one, parts) =
                (gradients(choice, true, track_input), gradients(choice, false, track_input));
            assert_eq!(one.iter().flatten().count(), count + usize::from(track_input), "{what}");
            for (one, parts) in one.iter().zip(&parts) {
                match (one, parts) {
                    (Some(one), Some(parts)) => assert_close(&what, one, parts, 2e-5),
                    (one, parts) => assert_eq!(one, parts, "{what}"),
                }
            }
        }
    }
}

/// A sequence in pieces through a cache gives what it gives at once, whichever rows are wanted, with and without autodiff.
fn cache_continues_the_sequence<B: Backend>(_: usize) {
    let everything = Case { dropout: false, rows: None, ..Case::with_everything() };
    for case in [Case::default(), everything] {
        let case = Case { key_lengths: None, ..case };
        continues::<B>(&case);
        continues::<Autodiff<B>>(&case);
    }
}

fn continues<B: Backend>(case: &Case) {
    // As in a decoder whose parameters may be trained.
    let x: Vec<Tensor<B, 1>> = case
        .inputs()
        .iter()
        .map(|x| {
            tensor::<B, 1>(x, [x.len()], DType::F32)
                .set_require_grad(B::ad_enabled(&Default::default()))
        })
        .collect();
    let whole = case.as_one(&x, Keep::All).detach().reshape([BATCH, SEQ, D]);
    let tables = case.rotary::<B>(DType::F32);
    let mut cache = BlockCache::new();
    for (start, len) in [(0, 2), (2, 1), (3, 2)] {
        let piece = |x: Tensor<B, 3>| x.narrow(1, start, len);
        let input = piece(x[0].clone().reshape([BATCH, SEQ, D])).reshape([BATCH * len, D]);
        let expected = piece(whole.clone()).reshape([BATCH * len, D]);
        // Of the last piece the last row of each sequence only.
        let rows = (start == 3).then(|| vec![len - 1, 2 * len - 1]);
        let expected = match &rows {
            Some(_) => expected.reshape([BATCH, len * D]).narrow(1, (len - 1) * D, D),
            None => expected,
        };
        let case = Case { rows, ..case.clone() };
        let ctx = case.context(tables.clone().map(piece), Keep::All);
        assert_eq!(cache.seen(), start);
        let y = decoder_block(input, case.params(&x), &ctx, Some(&mut cache));
        assert!(!y.is_require_grad(), "a constant");
        let what = format!("{case:?}, from {start}");
        assert_close(&what, &to_vec(y), &to_vec(flat(expected)), 1e-5);
        // A cache may come from elsewhere.
        let (keys, values) = cache.past().expect("positions were seen");
        assert_eq!(keys.dims(), [BATCH, case.kv_heads, start + len, case.head_dim]);
        assert_eq!(keys.dims(), values.dims());
        cache = BlockCache::from_past(keys, values);
    }
    assert_eq!(cache.seen(), SEQ);
}

/// Values are 0 or `1 / (1 - p)` at the stated rate, and the same for a row wherever it stands.
fn masks_are_functions_of_their_keys<B: Backend>(_: usize) {
    let device = Default::default();
    let mask = |rows: Vec<u64>, place: u64, d: usize| {
        let ones = Tensor::<B, 2>::ones([rows.len(), d], &device);
        let keys = DropoutKeys::<B>::new(rows, &device);
        to_vec(dropout(ones, &Dropout { keys, place, p: 0.25 }))
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
    has_the_bits_of_its_parts,
    only_some_parameters_are_trained,
    cache_continues_the_sequence,
    masks_are_functions_of_their_keys,
);
