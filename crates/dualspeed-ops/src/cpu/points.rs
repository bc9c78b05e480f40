//! Max-min diverse selection: one product per image, then the picks.

use rayon::prelude::*;

use super::gemm::{Mat, MatMut, Threads, gemm};
use super::rows::zeros;
use super::simd::{max_of, multiversion, sum_of};
use crate::plain::{FAR, MIN_NORM, PICKED};

multiversion! {
    fn normalise(x: &[f32], d: usize, out: &mut [f32]) {
        for (out, x) in out.chunks_exact_mut(d).zip(x.chunks_exact(d)) {
            let norm = sum_of(x, |x| x * x).sqrt();
            let norm = if norm < MIN_NORM { MIN_NORM } else { norm };
            for (out, x) in out.iter_mut().zip(x) {
                *out = x / norm;
            }
        }
    }
}

multiversion! {
    fn to_distance(cosine: &mut [f32]) {
        for value in cosine {
            let distance = 1.0 - *value;
            *value = if distance.is_nan() { 0.0 } else { distance };
        }
    }
}

multiversion! {
    fn lower(nearest: &mut [f32], distance: &[f32]) {
        for (nearest, distance) in nearest.iter_mut().zip(distance) {
            *nearest = if *distance < *nearest { *distance } else { *nearest };
        }
    }
}

multiversion! {
    fn largest(x: &[f32]) -> f32 {
        max_of(x)
    }
}

fn first_argmax(x: &[f32]) -> usize {
    let max = largest(x);
    x.iter().position(|value| *value == max).unwrap_or(0)
}

fn pick(features: &[f32], n: usize, d: usize, picks: &mut [i64], threads: Threads) {
    let mut unit = zeros(n * d);
    normalise(features, d, &mut unit);
    let mut distance = zeros(n * n);
    let rows = Mat::new(&unit, n, d);
    gemm(MatMut::new(&mut distance, n, n), false, 1.0, rows, rows.t(), threads);
    to_distance(&mut distance);

    let mut nearest = vec![FAR; n]; // first: distance to the nearest other row
    for (i, row) in distance.chunks_exact(n).enumerate() {
        let others = row.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, value)| *value);
        nearest[i] = others.fold(FAR, |min, value| if value < min { value } else { min });
    }
    for i in 0..n {
        distance[i * n + i] = PICKED;
    }
    let mut picks = picks.iter_mut();
    let mut current = first_argmax(&nearest);
    nearest.fill(FAR);
    if let Some(first) = picks.next() {
        *first = current as i64;
    }
    for slot in picks {
        lower(&mut nearest, &distance[current * n..(current + 1) * n]);
        current = first_argmax(&nearest);
        *slot = current as i64;
    }
}

/// `[b, keep]` from `[b, n, d]`.
pub(super) fn farthest_points(features: &[f32], shape: [usize; 3], keep: usize) -> Vec<i64> {
    let [b, n, d] = shape;
    let mut picks = vec![0; b * keep];
    if keep == 0 || n == 0 || d == 0 {
        return picks;
    }
    let threads = if b == 1 { Threads::All } else { Threads::One };
    picks
        .par_chunks_mut(keep)
        .zip(features.par_chunks(n * d))
        .for_each(|(picks, features)| pick(features, n, d, picks, threads));
    picks
}
