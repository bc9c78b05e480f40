//! Cross entropy and distillation at the supervised positions, in chunks of rows.

use burn::tensor::backend::Backend;
use burn::tensor::ops::{FloatTensor, IntTensor};
use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorMetadata, activation::log_softmax};

use super::{cast, primitive, tensor, widen};
use crate::types::*;

/// Logits that may exist at a time: 64 MiB in f32.
const CHUNK_LOGITS: usize = 1 << 24;

/// Rows per chunk for a vocabulary of `vocab`.
pub(crate) fn chunk_rows(vocab: usize, logits: usize) -> usize {
    (logits / vocab.max(1)).max(16)
}

/// Default body of [`Backend::fused_token_losses`](crate::Backend::fused_token_losses).
pub fn token_losses<B: Backend>(
    hidden: FloatTensor<B>,
    lm_head: FloatTensor<B>,
    targets: IntTensor<B>,
    teacher: Option<FloatTensor<B>>,
    tau: f64,
) -> FloatTensor<B> {
    let hidden = tensor::<B, 2>(hidden);
    let lm_head = cast(tensor::<B, 2>(lm_head), hidden.dtype());
    let targets = Tensor::<B, 1, Int>::from_primitive(targets);
    let teacher = teacher.map(|teacher| cast(tensor::<B, 2>(teacher), hidden.dtype()));
    let ([n, _], [_, vocab]) = (hidden.dims(), lm_head.dims());
    let step = chunk_rows(vocab, CHUNK_LOGITS);
    let mut chunks = Vec::with_capacity(n.div_ceil(step));
    for start in (0..n).step_by(step) {
        let len = step.min(n - start);
        let logits = widen(hidden.clone().narrow(0, start, len).matmul(lm_head.clone()));
        let target = targets.clone().narrow(0, start, len).reshape([len, 1]);
        let correct = logits.clone().argmax(1).equal(target.clone()).float();
        let ce = log_softmax(logits.clone(), 1).gather(1, target).neg(); // [len, 1]
        let kl = match &teacher {
            Some(teacher) => {
                let teacher = teacher.clone().narrow(0, start, len).matmul(lm_head.clone());
                let teacher = log_softmax(widen(teacher).div_scalar(tau), 1);
                let student = log_softmax(logits.div_scalar(tau), 1);
                (teacher.clone().exp() * (teacher - student)).sum_dim(1).mul_scalar(tau * tau)
            }
            None => ce.zeros_like(),
        };
        let correct = cast(correct, ce.dtype());
        chunks.push(Tensor::cat(vec![ce, kl, correct], 1));
    }
    if chunks.is_empty() {
        return primitive(widen(Tensor::<B, 2>::zeros([0, 3], &hidden.device())));
    }
    primitive(Tensor::cat(chunks, 0))
}

/// Default body of [`Backend::fused_token_losses_backward`](crate::Backend::fused_token_losses_backward).
pub fn token_losses_backward<B: Backend>(
    hidden: FloatTensor<B>,
    lm_head: FloatTensor<B>,
    targets: IntTensor<B>,
    teacher: Option<FloatTensor<B>>,
    tau: f64,
    grad: FloatTensor<B>,
    [needs_hidden, needs_lm_head]: [bool; 2],
) -> TokenLossesGrads<B> {
    let (hidden, lm_head_dtype) = (tensor::<B, 2>(hidden), lm_head.dtype());
    let lm_head = cast(tensor::<B, 2>(lm_head), hidden.dtype());
    let targets = Tensor::<B, 1, Int>::from_primitive(targets);
    let teacher = teacher.map(|teacher| cast(tensor::<B, 2>(teacher), hidden.dtype()));
    let grad = tensor::<B, 2>(grad);
    let (dtype, [n, _], [_, vocab]) = (hidden.dtype(), hidden.dims(), lm_head.dims());
    let step = chunk_rows(vocab, CHUNK_LOGITS);
    let mut grad_hidden = Vec::with_capacity(n.div_ceil(step));
    let mut grad_lm_head: Option<Tensor<B, 2>> = None;
    for start in (0..n).step_by(step) {
        let len = step.min(n - start);
        let x = hidden.clone().narrow(0, start, len);
        let logits = widen(x.clone().matmul(lm_head.clone()));
        let target = targets.clone().narrow(0, start, len).reshape([len, 1]);
        let grad_ce = grad.clone().slice([start..start + len, 0..1]);
        let mut grad_logits = (log_softmax(logits.clone(), 1).exp() * grad_ce.clone()).scatter(
            1,
            target,
            grad_ce.neg(),
            IndexingUpdateOp::Add,
        );
        if let Some(teacher) = &teacher {
            let teacher = teacher.clone().narrow(0, start, len).matmul(lm_head.clone());
            let teacher = log_softmax(widen(teacher).div_scalar(tau), 1).exp();
            let student = log_softmax(logits.div_scalar(tau), 1).exp();
            let grad_kl = grad.clone().slice([start..start + len, 1..2]).mul_scalar(tau);
            grad_logits = grad_logits + (student - teacher) * grad_kl;
        }
        let grad_logits = cast(grad_logits, dtype);
        if needs_hidden {
            grad_hidden.push(grad_logits.clone().matmul(lm_head.clone().transpose()));
        }
        if needs_lm_head {
            let part = widen(x.transpose().matmul(grad_logits));
            grad_lm_head = Some(match grad_lm_head {
                Some(sum) => sum + part,
                None => part,
            });
        }
    }
    let grad_hidden = needs_hidden.then(|| match grad_hidden.is_empty() {
        true => primitive(hidden.zeros_like()),
        false => primitive(Tensor::cat(grad_hidden, 0)),
    });
    let grad_lm_head = needs_lm_head.then(|| {
        primitive(cast(grad_lm_head.unwrap_or_else(|| lm_head.zeros_like()), lm_head_dtype))
    });
    TokenLossesGrads { hidden: grad_hidden, lm_head: grad_lm_head }
}
