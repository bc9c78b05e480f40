//! Rotary embedding, straight from a permuted view.

use super::rows::{for_rows, zeros};
use super::simd::multiversion;
use super::view::Heads;

multiversion! {
    fn rotate(x: &[f32], cos: &[f32], sin: &[f32], direction: f32, out: &mut [f32]) {
        let half = cos.len();
        let (x1, x2) = x.split_at(half);
        let (out1, out2) = out.split_at_mut(half);
        let (x2, out2, sin) = (&x2[..half], &mut out2[..half], &sin[..half]);
        for i in 0..half {
            let s = sin[i] * direction;
            out1[i] = x1[i] * cos[i] - x2[i] * s;
            out2[i] = x2[i] * cos[i] + x1[i] * s;
        }
    }
}

/// The rotated rows in the memory order `[b, s, h, d]`. `cos`, `sin` are `[1 or b, s, d/2]`; `direction` is 1, or -1 for
/// the gradient.
pub(super) fn rope(x: &Heads<'_>, cos: &[f32], sin: &[f32], direction: f32) -> Vec<f32> {
    let (len, heads, dim) = (x.len, x.heads, x.dim);
    let mut out = zeros(x.batch * len * heads * dim);
    let half = dim / 2;
    let shared = cos.len() == len * half;
    for_rows(&mut out, heads * dim, |start, piece| {
        for (i, token) in piece.chunks_exact_mut(heads * dim).enumerate() {
            let (b, s) = ((start + i) / len, (start + i) % len);
            let angle = if shared { s } else { start + i } * half;
            let (cos, sin) = (&cos[angle..angle + half], &sin[angle..angle + half]);
            for (h, out) in token.chunks_exact_mut(dim).enumerate() {
                rotate(x.row(b, h, s), cos, sin, direction, out);
            }
        }
    });
    out
}
