//! Token losses: logits of one chunk of rows at a time, gradients in their place.

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, Threads, gemm};
use super::rows::{for_rows, piece_rows, zeros};
use super::simd::{exp, max_of, multiversion, sum_of, sum_of2};
use crate::plain::chunk_rows;

/// Logits that may exist at a time, per side: 16 MiB.
const CHUNK_LOGITS: usize = 1 << 22;

/// The inputs of one call; `[n, d]`, `[d, vocab]`, `[n]`, `[n, d]`.
pub(super) struct Inputs<'a> {
    pub hidden: &'a [f32],
    pub lm_head: Mat<'a>,
    pub targets: &'a [i64],
    pub teacher: Option<&'a [f32]>,
    pub tau: f32,
    pub d: usize,
    pub vocab: usize,
}

/// `ln sum exp(x / tau)`.
#[inline(always)]
fn logsumexp(x: &[f32], max: f32, inverse_tau: f32) -> f32 {
    max * inverse_tau + sum_of(x, |x| exp((x - max) * inverse_tau)).ln()
}

multiversion! {
    fn row_losses(logits: &[f32], target: i64, teacher: Option<&[f32]>, tau: f32) -> [f32; 3] {
        let max = max_of(logits);
        let target = usize::try_from(target).unwrap_or(usize::MAX);
        let normaliser = logsumexp(logits, max, 1.0);
        // A target outside the vocabulary gives NaN, which the trainer reports.
        let ce = logits.get(target).map_or(f32::NAN, |logit| normaliser - logit);
        let correct = logits.iter().position(|logit| *logit == max) == Some(target);
        let kl = teacher.map_or(0.0, |teacher| {
            let inverse = 1.0 / tau;
            let shift = if tau == 1.0 { normaliser } else { logsumexp(logits, max, inverse) };
            let teacher_shift = logsumexp(teacher, max_of(teacher), inverse);
            let kl = sum_of2(teacher, logits, |t, s| {
                let t = t * inverse - teacher_shift;
                exp(t) * (t - (s * inverse - shift))
            });
            kl * tau * tau
        });
        [ce, kl, f32::from(u8::from(correct))]
    }
}

multiversion! {
    /// Logits to their gradient.
    fn row_grad(
        logits: &mut [f32],
        target: i64,
        teacher: Option<&[f32]>,
        tau: f32,
        grad_ce: f32,
        grad_kl: f32,
    ) {
        let max = max_of(logits);
        let normaliser = logsumexp(logits, max, 1.0);
        match teacher {
            Some(teacher) => {
                let inverse = 1.0 / tau;
                let shift = logsumexp(logits, max, inverse);
                let teacher_shift = logsumexp(teacher, max_of(teacher), inverse);
                let grad_kl = grad_kl * tau;
                for (logit, teacher) in logits.iter_mut().zip(teacher) {
                    let student = exp(*logit * inverse - shift);
                    let teacher = exp(teacher * inverse - teacher_shift);
                    let ce = exp(*logit - normaliser) * grad_ce;
                    *logit = ce + (student - teacher) * grad_kl;
                }
            }
            None => {
                for logit in logits.iter_mut() {
                    *logit = exp(*logit - normaliser) * grad_ce;
                }
            }
        }
        if let Some(logit) = usize::try_from(target).ok().and_then(|i| logits.get_mut(i)) {
            *logit -= grad_ce;
        }
    }
}

impl Inputs<'_> {
    /// Calls `f(start, rows, logits, teacher_logits)` chunk by chunk.
    fn for_chunks(&self, mut f: impl FnMut(usize, usize, &mut [f32], Option<&[f32]>)) {
        let (n, d, vocab) = (self.targets.len(), self.d, self.vocab);
        let step = chunk_rows(vocab, CHUNK_LOGITS).min(n.max(1));
        let mut logits = zeros(step * vocab);
        let mut teacher_logits = zeros(if self.teacher.is_some() { step * vocab } else { 0 });
        let product = |x: &[f32], start: usize, rows: usize, out: &mut [f32]| {
            let x = Mat::new(&x[start * d..(start + rows) * d], rows, d);
            gemm(MatMut::new(out, rows, vocab), false, 1.0, x, self.lm_head, Threads::All);
        };
        for start in (0..n).step_by(step) {
            let rows = step.min(n - start);
            let logits = &mut logits[..rows * vocab];
            product(self.hidden, start, rows, logits);
            let teacher = self.teacher.map(|teacher| {
                let out = &mut teacher_logits[..rows * vocab];
                product(teacher, start, rows, out);
                &*out
            });
            f(start, rows, logits, teacher);
        }
    }

    /// `[n, 3]`.
    pub fn forward(&self) -> Vec<f32> {
        let (vocab, tau) = (self.vocab, self.tau);
        let mut out = zeros(self.targets.len() * 3);
        self.for_chunks(|start, rows, logits, teacher| {
            let out = &mut out[start * 3..(start + rows) * 3];
            let targets = &self.targets[start..start + rows];
            let rows = out.par_chunks_mut(3).zip(targets).enumerate();
            rows.with_min_len(piece_rows(vocab)).for_each(|(i, (out, target))| {
                let range = i * vocab..(i + 1) * vocab;
                let teacher = teacher.map(|teacher| &teacher[range.clone()]);
                out.copy_from_slice(&row_losses(&logits[range], *target, teacher, tau));
            });
        });
        out
    }

    /// Gradients for `hidden` `[n, d]` and `lm_head` `[d, vocab]` where needed; `grad` is `[n, 3]`.
    pub fn backward(
        &self,
        grad: &[f32],
        [needs_hidden, needs_lm_head]: [bool; 2],
    ) -> [Option<Vec<f32>>; 2] {
        let (d, vocab, tau) = (self.d, self.vocab, self.tau);
        let mut grad_hidden = zeros(if needs_hidden { self.hidden.len() } else { 0 });
        let mut grad_lm_head = zeros(if needs_lm_head { d * vocab } else { 0 });
        self.for_chunks(|start, rows, logits, teacher| {
            for_rows(logits, vocab, |first, piece| {
                for (i, row) in piece.chunks_exact_mut(vocab).enumerate() {
                    let i = first + i;
                    let teacher = teacher.map(|teacher| &teacher[i * vocab..(i + 1) * vocab]);
                    let grad = &grad[(start + i) * 3..];
                    row_grad(row, self.targets[start + i], teacher, tau, grad[0], grad[1]);
                }
            });
            let grad_logits = Mat::new(logits, rows, vocab);
            let range = start * d..(start + rows) * d;
            if needs_hidden {
                let dst = MatMut::new(&mut grad_hidden[range.clone()], rows, d);
                gemm(dst, false, 1.0, grad_logits, self.lm_head.t(), Threads::All);
            }
            if needs_lm_head {
                let x = Mat::new(&self.hidden[range], rows, d).t();
                let dst = MatMut::new(&mut grad_lm_head, d, vocab);
                gemm(dst, true, 1.0, x, grad_logits, Threads::All);
            }
        });
        [needs_hidden.then_some(grad_hidden), needs_lm_head.then_some(grad_lm_head)]
    }
}
