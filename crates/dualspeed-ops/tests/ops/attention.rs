//! Attention: fused against plain, masks against what they mean.

use burn::tensor::DType;
use burn_autodiff::Autodiff;
use dualspeed_ops::*;

use crate::per_backend;
use crate::support::{assert_close, assert_same, flat, primitive, tensor, to_vec, values, wrap};

per_backend!(
    matches_plain,
    padding_is_invisible,
    cache_continues_the_sequence,
    sees_nothing,
    packed_sequences_are_strangers,
);

struct Case {
    b: usize,
    hq: usize,
    hkv: usize,
    sq: usize,
    sk: usize,
    d: usize,
    key_lengths: Option<Vec<usize>>,
}

fn case(dims: [usize; 6], key_lengths: Option<Vec<usize>>) -> Case {
    let [b, hq, hkv, sq, sk, d] = dims;
    Case { b, hq, hkv, sq, sk, d, key_lengths }
}

fn matches_plain<B: Backend>(cases: usize) {
    let shapes = [
        case([2, 2, 1, 3, 5, 4], Some(vec![1, 4])),
        case([2, 4, 2, 67, 67, 10], Some(vec![67, 30])),
        case([3, 6, 2, 70, 133, 33], None),
    ];
    for shape in shapes.into_iter().take(cases) {
        let Case { b, hq, hkv, sq, sk, d, key_lengths } = shape;
        let inputs =
            [values(b * hq * sq * d, 1), values(b * hkv * sk * d, 2), values(b * hkv * sk * d, 3)];
        for (causal, permuted) in [(false, false), (true, true)] {
            let spec = AttentionSpec {
                causal,
                key_lengths: key_lengths.clone(),
                ..AttentionSpec::default()
            };
            let heads = |x: &[burn::tensor::Tensor<Autodiff<B>, 1>]| {
                [(0, hq, sq), (1, hkv, sk), (2, hkv, sk)].map(|(i, h, s): (usize, _, _)| {
                    match permuted {
                        true => x[i].clone().reshape([b, s, h, d]).swap_dims(1, 2),
                        false => x[i].clone().reshape([b, h, s, d]),
                    }
                })
            };
            assert_same::<B>(
                &format!("attention {causal} {permuted} {sq}x{sk}"),
                &inputs,
                1e-5,
                &|x| {
                    let [q, k, v] = heads(x);
                    flat(attention(q, k, v, &spec).swap_dims(1, 2))
                },
                &|x| {
                    let [q, k, v] = heads(x).map(primitive);
                    let y = plain::attention::<burn_autodiff::Autodiff<B>>(q, k, v, &spec).output;
                    flat(wrap::<Autodiff<B>, 4>(y).swap_dims(1, 2))
                },
            );
        }
    }
}

/// What stands in the padding has no influence.
fn padding_is_invisible<B: Backend>(_: usize) {
    let [b, h, s, d] = [2, 2, 5, 4];
    let q = tensor::<B, 4>(&values(b * h * s * d, 1), [b, h, s, d], DType::F32);
    let spec =
        AttentionSpec { causal: false, key_lengths: Some(vec![2, 5]), ..AttentionSpec::default() };
    let run = |pad: f64| {
        let mut k = values(b * h * s * d, 2);
        for head in 0..h {
            k[(head * s + 2) * d..(head + 1) * s * d].fill(pad);
        }
        let k = tensor::<B, 4>(&k, [b, h, s, d], DType::F32);
        to_vec(attention(q.clone(), k.clone(), k, &spec))
    };
    assert_close("padding", &run(0.5), &run(-30.0), 1e-7);
}

/// The last queries against all keys give the last rows of the whole.
fn cache_continues_the_sequence<B: Backend>(_: usize) {
    let [b, h, s, d] = [1, 2, 7, 4];
    let x = tensor::<B, 4>(&values(b * h * s * d, 1), [b, h, s, d], DType::F32);
    let whole = attention(x.clone(), x.clone(), x.clone(), &AttentionSpec::causal());
    let tail = attention(x.clone().narrow(2, 5, 2), x.clone(), x, &AttentionSpec::causal());
    assert_close("cache", &to_vec(tail), &to_vec(whole.narrow(2, 5, 2)), 1e-6);
}

/// Queries before the first key, and rows without keys, give zeros, not NaN.
fn sees_nothing<B: Backend>(_: usize) {
    let [b, h, sq, sk, d] = [2, 1, 4, 2, 3];
    let q = tensor::<B, 4>(&values(b * h * sq * d, 1), [b, h, sq, d], DType::F32);
    let k = tensor::<B, 4>(&values(b * h * sk * d, 2), [b, h, sk, d], DType::F32);
    let spec =
        AttentionSpec { causal: true, key_lengths: Some(vec![2, 0]), ..AttentionSpec::default() };
    let y = to_vec(attention(q, k.clone(), k, &spec));
    assert!(y.iter().all(|value| value.is_finite()));
    assert!(y[..2 * d].iter().all(|value| *value == 0.0), "queries before the first key");
    assert!(y[2 * d..4 * d].iter().any(|value| *value != 0.0), "queries that see keys");
    assert!(y[4 * d..].iter().all(|value| *value == 0.0), "a row without keys");
}

/// Sequences packed into one row, each as if it were alone, gradients too.
fn packed_sequences_are_strangers<B: Backend>(_: usize) {
    let (h, d, lengths) = (2, 4, [3, 1, 4]);
    let total: usize = lengths.iter().sum();
    let inputs = [1, 2, 3].map(|seed| values(h * total * d, seed));
    let heads = |x: &burn::tensor::Tensor<Autodiff<B>, 1>| x.clone().reshape([1, h, total, d]);
    assert_same::<B>(
        "packed",
        &inputs,
        1e-5,
        &|x| {
            let spec = AttentionSpec::packed(lengths.to_vec());
            flat(attention(heads(&x[0]), heads(&x[1]), heads(&x[2]), &spec))
        },
        &|x| {
            let mut start = 0;
            let parts = lengths.map(|length| {
                let [q, k, v] =
                    [0, 1, 2].map(|i: usize| primitive(heads(&x[i]).narrow(2, start, length)));
                start += length;
                let spec = AttentionSpec::causal();
                wrap::<Autodiff<B>, 4>(plain::attention::<Autodiff<B>>(q, k, v, &spec).output)
            });
            flat(burn::tensor::Tensor::cat(parts.to_vec(), 2))
        },
    );
}
