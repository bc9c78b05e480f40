//! Every hand-written backward against central differences in f64, for every choice of tracked inputs.

#![cfg(feature = "ndarray")]

use burn::tensor::{DType, Int, Tensor};
use burn_autodiff::Autodiff;
use burn_ndarray::NdArray;
use dualspeed_ops::*;

use crate::block::case::{Case, QKV};
use crate::support::{Flat, assert_close, flat, primitive, run, values, wrap};

type B = NdArray<f64>;
type A = Autodiff<B>;

fn check(what: &str, lens: &[usize], f: &dyn Fn(&[Flat<B>]) -> Flat<B>) {
    let inputs: Vec<Vec<f64>> =
        lens.iter().enumerate().map(|(i, len)| values(*len, 100 + i as u64)).collect();
    let all = vec![true; inputs.len()];
    let (_, full) = run::<B>(&inputs, &all, DType::F64, f);
    let objective = |inputs: &[Vec<f64>]| {
        let (output, _) = run::<B>(inputs, &vec![false; inputs.len()], DType::F64, f);
        let cotangent = values(output.len(), 4711);
        output.iter().zip(&cotangent).map(|(a, b)| a * b).sum::<f64>()
    };
    for i in 0..inputs.len() {
        let grad = full[i].as_ref().expect("a tracked input has a gradient");
        for seed in 0..3 {
            let direction = values(inputs[i].len(), 900 + seed);
            let at = |h: f64| {
                let mut moved = inputs.clone();
                moved[i].iter_mut().zip(&direction).for_each(|(x, u)| *x += h * u);
                objective(&moved)
            };
            let h = 1e-5;
            let numeric = (at(h) - at(-h)) / (2.0 * h);
            let analytic: f64 = grad.iter().zip(&direction).map(|(g, u)| g * u).sum();
            assert_close(&format!("{what}, input {i}"), &[analytic], &[numeric], 1e-7);
        }
    }
    // Any subset of tracked inputs gets the same gradients, the others none.
    for subset in 0..1usize << inputs.len() {
        let tracked: Vec<bool> = (0..inputs.len()).map(|i| subset >> i & 1 == 1).collect();
        let (_, grads) = run::<B>(&inputs, &tracked, DType::F64, f);
        for (i, grad) in grads.iter().enumerate() {
            match (grad, tracked[i]) {
                (Some(grad), true) => {
                    let full = full[i].as_ref().expect("checked above");
                    assert_close(&format!("{what}, subset {subset}, input {i}"), grad, full, 1e-12);
                }
                (None, false) => {}
                _ => {
                    panic!("{what}: subset {subset}, input {i}: gradient where none was asked for")
                }
            }
        }
    }
}

#[test]
fn linear_layers() {
    check("linear", &[2 * 3 * 5, 5 * 4, 4], &|x| {
        let bias = Some(x[2].clone());
        flat(linear(x[0].clone().reshape([2, 3, 5]), x[1].clone().reshape([5, 4]), bias))
    });
    check("linear without bias", &[3 * 5, 5 * 4], &|x| {
        flat(linear(x[0].clone().reshape([3, 5]), x[1].clone().reshape([5, 4]), None))
    });
    check("select_rows", &[4 * 5], &|x| {
        let ids = Tensor::<A, 1, Int>::from_data([2, 0, 2, 3, 2], &x[0].device());
        flat(select_rows(x[0].clone().reshape([4, 5]), ids))
    });
    check("dropout", &[6 * 5, 6 * 5], &|x| {
        let [x, sum] = [0, 1].map(|i: usize| primitive(x[i].clone().reshape([2, 3, 5])));
        flat(wrap::<A, 3>(A::fused_dropout(x, &crate::support::dropout(6), Some(sum))))
    });
    for (masked, biased) in [(false, false), (true, false), (true, true)] {
        let lens = [2 * 3 * 5, 5 * 4, 5 * 2, 2 * 4, 4];
        check("lora_linear", if biased { &lens } else { &lens[..4] }, &|x| {
            let dropout = masked.then(|| crate::support::dropout(6));
            flat(lora_linear(
                x[0].clone().reshape([2, 3, 5]),
                x[1].clone().reshape([5, 4]),
                x.get(4).cloned(),
                x[2].clone().reshape([5, 2]),
                x[3].clone().reshape([2, 4]),
                0.7,
                dropout,
            ))
        });
    }
}

#[test]
fn norms_and_activations() {
    check("rms_norm", &[2 * 3 * 5, 5], &|x| {
        flat(rms_norm(x[0].clone().reshape([2, 3, 5]), x[1].clone(), 1e-5))
    });
    check("layer_norm", &[2 * 3 * 5, 5, 5], &|x| {
        flat(layer_norm(x[0].clone().reshape([2, 3, 5]), x[1].clone(), x[2].clone(), 1e-5))
    });
    check("gelu", &[24], &|x| gelu(x[0].clone()));
    check("quick_gelu", &[24], &|x| quick_gelu(x[0].clone()));
    check("swiglu", &[24, 24], &|x| swiglu(x[0].clone(), x[1].clone()));
}

#[test]
fn rotary_embedding() {
    check("rope", &[2 * 3 * 4 * 6], &|x| {
        let angles = values(4 * 3, 5);
        let cos: Vec<f64> = angles.iter().map(|angle| angle.cos()).collect();
        let sin: Vec<f64> = angles.iter().map(|angle| angle.sin()).collect();
        flat(rope(
            x[0].clone().reshape([2, 3, 4, 6]),
            crate::support::tensor::<A, 3>(&cos, [1, 4, 3], DType::F64),
            crate::support::tensor::<A, 3>(&sin, [1, 4, 3], DType::F64),
        ))
    });
}

#[test]
fn grouped_causal_attention() {
    for (causal, key_lengths) in [(false, None), (true, None), (true, Some(vec![3, 5]))] {
        let spec = AttentionSpec { causal, key_lengths, ..AttentionSpec::default() };
        check("attention", &[2 * 4 * 3 * 6, 2 * 2 * 5 * 6, 2 * 2 * 5 * 6], &|x| {
            flat(attention(
                x[0].clone().reshape([2, 4, 3, 6]),
                x[1].clone().reshape([2, 2, 5, 6]),
                x[2].clone().reshape([2, 2, 5, 6]),
                &spec,
            ))
        });
    }
}

#[test]
fn decoder_blocks() {
    let qwen2 = Case { biases: QKV, ..Case::with_adapters(true) };
    for (case, keep) in [
        (Case::default(), Keep::All),
        (qwen2, Keep::Products),
        (Case::with_everything(), Keep::Input),
        (Case::with_everything(), Keep::All),
    ] {
        let what = format!("decoder_block {case:?}, {keep:?}");
        check(&what, &case.lens(), &|x| case.as_one(x, keep));
    }
}

#[test]
fn losses_of_tokens() {
    for teacher in [false, true] {
        check("token_losses", &[4 * 3, 3 * 7], &|x| {
            let targets = Tensor::<A, 1, Int>::from_data([0, 6, 3, 3], &Default::default());
            // Column 2 is piecewise constant, so it may stay in the objective. The teacher's logits are constants for
            // the gradient but depend on lm_head, except for a teacher of zeros.
            let teacher = teacher.then(|| x[0].clone().detach().reshape([4, 3]).mul_scalar(0.0));
            flat(token_losses(
                x[0].clone().reshape([4, 3]),
                x[1].clone().reshape([3, 7]),
                targets,
                teacher,
                2.0,
            ))
        });
    }
}
