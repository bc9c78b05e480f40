//! Token losses against log-softmax written out.

use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use dualspeed_ops::*;

use crate::per_backend;
use crate::support::{Flat, assert_close, assert_same, flat, tensor, to_vec, values};

per_backend!(matches_log_softmax, teacher_is_constant, counts_correct, chunks_join);

fn targets<B: Backend>(n: usize, vocab: usize) -> Tensor<B, 1, Int> {
    let targets: Vec<i64> = (0..n).map(|i| ((i * 7 + 3) % vocab) as i64).collect();
    Tensor::from_data(TensorData::new(targets, [n]), &B::Device::default())
}

/// Cross entropy and tau^2 KL as `[n, 2]`, the teacher's logits detached.
fn naive<B: Backend>(
    hidden: Tensor<Autodiff<B>, 2>,
    lm_head: Tensor<Autodiff<B>, 2>,
    teacher: Option<Tensor<Autodiff<B>, 2>>,
    tau: f64,
) -> Tensor<Autodiff<B>, 2> {
    let [n, _] = hidden.dims();
    let vocab = lm_head.dims()[1];
    let logits = hidden.matmul(lm_head.clone());
    let target = targets::<Autodiff<B>>(n, vocab).reshape([n, 1]);
    let ce = log_softmax(logits.clone(), 1).gather(1, target).neg();
    let kl = match teacher {
        Some(teacher) => {
            let teacher = log_softmax(teacher.matmul(lm_head).detach().div_scalar(tau), 1);
            let student = log_softmax(logits.div_scalar(tau), 1);
            (teacher.clone().exp() * (teacher - student)).sum_dim(1).mul_scalar(tau * tau)
        }
        None => ce.zeros_like(),
    };
    Tensor::cat(vec![ce, kl], 1)
}

fn matches_log_softmax<B: Backend>(cases: usize) {
    for [n, d, vocab] in [[3, 4, 7], [70, 37, 133], [211, 64, 1030]].into_iter().take(cases) {
        let inputs = [values(n * d, 1), values(d * vocab, 2)];
        let teacher = values(n * d, 3);
        for (teacher, tau) in [(None, 1.0), (Some(&teacher), 1.0), (Some(&teacher), 2.5)] {
            let teacher =
                |dtype| teacher.map(|teacher| tensor::<Autodiff<B>, 2>(teacher, [n, d], dtype));
            let shaped = |x: &[Flat<B>]| {
                (x[0].clone().reshape([n, d]), x[1].clone().reshape([vocab, d]).transpose())
            };
            assert_same::<B>(
                &format!("token_losses {n}x{vocab} tau {tau}"),
                &inputs,
                2e-5,
                &|x| {
                    let (hidden, lm_head) = shaped(x);
                    let targets = targets::<Autodiff<B>>(n, vocab);
                    flat(
                        token_losses(hidden, lm_head, targets, teacher(x[0].dtype()), tau)
                            .narrow(1, 0, 2),
                    )
                },
                &|x| {
                    let (hidden, lm_head) = shaped(x);
                    flat(naive::<B>(hidden, lm_head, teacher(x[0].dtype()), tau))
                },
            );
        }
    }
}

/// A teacher equal to the student: KL and its gradients vanish.
fn teacher_is_constant<B: Backend>(_: usize) {
    let hidden = tensor::<Autodiff<B>, 2>(&values(12, 1), [3, 4], DType::F32).require_grad();
    let lm_head = tensor::<Autodiff<B>, 2>(&values(28, 2), [4, 7], DType::F32).require_grad();
    let losses =
        token_losses(hidden.clone(), lm_head.clone(), targets(3, 7), Some(hidden.clone()), 2.0);
    let kl = losses.narrow(1, 1, 1);
    assert_close("KL", &to_vec(kl.clone().inner()), &[0.0; 3], 1e-5);
    let grads = kl.sum().backward();
    for (name, grad) in [("hidden", hidden.grad(&grads)), ("lm_head", lm_head.grad(&grads))] {
        let grad = to_vec(grad.expect("a gradient"));
        assert_close(name, &grad, &vec![0.0; grad.len()], 1e-5);
    }
}

fn counts_correct<B: Backend>(_: usize) {
    // Logits are the hidden rows themselves; the second row ties, and the lowest index is the arg max.
    let hidden = [0.0, 3.0, 1.0, 2.0, 2.0, 0.0, 2.0, 2.0, 0.0];
    let hidden = tensor::<B, 2>(&hidden, [3, 3], DType::F32);
    let eye = tensor::<B, 2>(&[1., 0., 0., 0., 1., 0., 0., 0., 1.], [3, 3], DType::F32);
    let targets = Tensor::<B, 1, Int>::from_data([1, 0, 1], &B::Device::default());
    let losses = token_losses(hidden, eye, targets, None, 1.0);
    assert_close("correct", &to_vec(losses.narrow(1, 2, 1)), &[1.0, 1.0, 0.0], 0.0);
}

/// A vocabulary so large that rows come in several chunks.
fn chunks_join<B: Backend>(cases: usize) {
    let (n, d, vocab) = (40, 2, if cases > 1 { 1 << 18 } else { 64 });
    let hidden = tensor::<B, 2>(&values(n * d, 1), [n, d], DType::F32);
    let lm_head = tensor::<B, 2>(&values(d * vocab, 2), [d, vocab], DType::F32);
    let run = |start: usize, len: usize| {
        let targets = targets::<B>(n, vocab).narrow(0, start, len);
        let losses =
            token_losses(hidden.clone().narrow(0, start, len), lm_head.clone(), targets, None, 1.0);
        to_vec(losses)
    };
    let parts: Vec<f64> = (0..n).step_by(8).flat_map(|start| run(start, 8)).collect();
    assert_close("chunks", &run(0, n), &parts, 1e-6);
}
