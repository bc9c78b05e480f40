//! Fused against plain, forward and backward, on odd shapes and layouts.

use dualspeed_ops::*;

use crate::per_backend;
use crate::support::{assert_same, flat, primitive, values, wrap};

/// Batch, rows, width: tails of every vector length, one and many pieces.
const SHAPES: [[usize; 3]; 3] = [[1, 2, 5], [2, 67, 37], [3, 211, 130]];

per_backend!(linear_layers, lora_layers, norms, activations, rotary_embedding);

fn linear_layers<B: Backend>(cases: usize) {
    for [b, s, d] in SHAPES.into_iter().take(cases) {
        let out = d + 3;
        let inputs = [values(b * s * d, 1), values(d * out, 2), values(out, 3)];
        assert_same::<B>(
            "linear",
            &inputs,
            1e-5,
            &|x| {
                let input = x[0].clone().reshape([b, s, d]);
                flat(linear(input, x[1].clone().reshape([d, out]), Some(x[2].clone())))
            },
            &|x| {
                let input = x[0].clone().reshape([b, s, d]);
                let weight = x[1].clone().reshape([d, out]).unsqueeze();
                flat(input.matmul(weight) + x[2].clone().unsqueeze())
            },
        );
        // A transposed weight (tied embeddings) and a permuted input.
        assert_same::<B>(
            "linear on views",
            &inputs[..2],
            1e-5,
            &|x| {
                let input = x[0].clone().reshape([s, b, d]).swap_dims(0, 1);
                flat(linear(input, x[1].clone().reshape([out, d]).transpose(), None))
            },
            &|x| {
                let input = x[0].clone().reshape([s, b, d]).swap_dims(0, 1);
                flat(input.matmul(x[1].clone().reshape([out, d]).transpose().unsqueeze()))
            },
        );
    }
}

fn lora_layers<B: Backend>(cases: usize) {
    for [b, s, d] in SHAPES.into_iter().take(cases) {
        let (out, r) = (d + 3, 4);
        let inputs = [(b * s * d, 1), (d * out, 2), (d * r, 3), (r * out, 4), (out, 5)]
            .map(|(len, seed)| values(len, seed));
        for (masked, biased) in [(false, false), (true, false), (true, true)] {
            assert_same::<B>(
                "lora_linear",
                if biased { &inputs } else { &inputs[..4] },
                1e-5,
                &|x| {
                    flat(lora_linear(
                        x[0].clone().reshape([b, s, d]),
                        x[1].clone().reshape([d, out]),
                        x.get(4).cloned(),
                        x[2].clone().reshape([d, r]),
                        x[3].clone().reshape([r, out]),
                        0.5,
                        masked.then(|| crate::support::dropout(b * s)),
                    ))
                },
                &|x| {
                    let input = x[0].clone().reshape([b, s, d]);
                    let dropped = match masked {
                        true => {
                            let ones = input.ones_like();
                            input.clone() * dropout(ones, &crate::support::dropout(b * s))
                        }
                        false => input.clone(),
                    };
                    let low_rank = dropped
                        .matmul(x[2].clone().reshape([d, r]).unsqueeze())
                        .matmul(x[3].clone().reshape([r, out]).unsqueeze());
                    let dense = input.matmul(x[1].clone().reshape([d, out]).unsqueeze());
                    let y = dense + low_rank.mul_scalar(0.5);
                    flat(match x.get(4) {
                        Some(bias) => y + bias.clone().unsqueeze(),
                        None => y,
                    })
                },
            );
        }
    }
}

fn norms<B: Backend>(cases: usize) {
    for [b, s, d] in SHAPES.into_iter().take(cases) {
        let inputs = [values(b * s * d, 1), values(d, 2), values(d, 3)];
        assert_same::<B>(
            "rms_norm",
            &inputs[..2],
            1e-5,
            &|x| flat(rms_norm(x[0].clone().reshape([b, s, d]), x[1].clone(), 1e-5)),
            &|x| {
                let input = primitive(x[0].clone().reshape([b, s, d]));
                let y = plain::rms_norm::<burn_autodiff::Autodiff<B>>(
                    input,
                    primitive(x[1].clone()),
                    1e-5,
                );
                flat(wrap::<burn_autodiff::Autodiff<B>, 3>(y))
            },
        );
        assert_same::<B>(
            "layer_norm of a slice",
            &inputs,
            1e-5,
            &|x| {
                let input = x[0].clone().reshape([b, s, d]).narrow(1, 1, s - 1);
                flat(layer_norm(input, x[1].clone(), x[2].clone(), 1e-5))
            },
            &|x| {
                let input = primitive(x[0].clone().reshape([b, s, d]).narrow(1, 1, s - 1));
                let (weight, bias) = (primitive(x[1].clone()), primitive(x[2].clone()));
                let y = plain::layer_norm::<burn_autodiff::Autodiff<B>>(input, weight, bias, 1e-5);
                flat(wrap::<burn_autodiff::Autodiff<B>, 3>(y))
            },
        );
    }
}

fn activations<B: Backend>(cases: usize) {
    for [b, s, d] in SHAPES.into_iter().take(cases) {
        // Up to 12 in magnitude: both tails of every function.
        let wide = |seed| values(b * s * d, seed).iter().map(|x| x * 6.0).collect::<Vec<f64>>();
        let inputs = [wide(1), values(b * s * d, 2)];
        assert_same::<B>("gelu", &inputs[..1], 1e-6, &|x| gelu(x[0].clone()), &|x| {
            wrap(plain::gelu::<burn_autodiff::Autodiff<B>>(primitive(x[0].clone())))
        });
        assert_same::<B>("quick_gelu", &inputs[..1], 1e-6, &|x| quick_gelu(x[0].clone()), &|x| {
            wrap(plain::quick_gelu::<burn_autodiff::Autodiff<B>>(primitive(x[0].clone())))
        });
        assert_same::<B>(
            "swiglu of permuted tensors",
            &inputs,
            1e-6,
            &|x| {
                let [gate, up] = [0, 1].map(|i| x[i].clone().reshape([b, s, d]).swap_dims(0, 2));
                flat(swiglu(gate, up))
            },
            &|x| {
                let [gate, up] = [0, 1]
                    .map(|i: usize| primitive(x[i].clone().reshape([b, s, d]).swap_dims(0, 2)));
                flat(wrap::<burn_autodiff::Autodiff<B>, 3>(plain::swiglu::<
                    burn_autodiff::Autodiff<B>,
                >(gate, up)))
            },
        );
    }
}

fn rotary_embedding<B: Backend>(cases: usize) {
    for ([b, h, s, d], per_row) in
        [([2, 2, 3, 4], false), ([3, 4, 67, 10], true), ([2, 3, 130, 64], false)]
            .into_iter()
            .take(cases)
    {
        let rows = if per_row { b } else { 1 };
        let angles = values(rows * s * d / 2, 7);
        let make = |f: fn(f64) -> f64, dtype| {
            let values: Vec<f64> = angles.iter().map(|angle| f(*angle)).collect();
            crate::support::tensor(&values, [rows, s, d / 2], dtype)
        };
        for permuted in [false, true] {
            assert_same::<B>(
                "rope",
                &[values(b * h * s * d, 1)],
                1e-6,
                &|x| {
                    let dtype = x[0].dtype();
                    let x = match permuted {
                        true => x[0].clone().reshape([b, s, h, d]).swap_dims(1, 2),
                        false => x[0].clone().reshape([b, h, s, d]),
                    };
                    flat(rope(x, make(f64::cos, dtype), make(f64::sin, dtype)))
                },
                &|x| {
                    let dtype = x[0].dtype();
                    let x = match permuted {
                        true => x[0].clone().reshape([b, s, h, d]).swap_dims(1, 2),
                        false => x[0].clone().reshape([b, h, s, d]),
                    };
                    let (cos, sin) =
                        (primitive(make(f64::cos, dtype)), primitive(make(f64::sin, dtype)));
                    let y = plain::rope::<burn_autodiff::Autodiff<B>>(primitive(x), cos, sin);
                    flat(wrap::<burn_autodiff::Autodiff<B>, 4>(y))
                },
            );
        }
    }
}
