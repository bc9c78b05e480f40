//! Max-min diverse selection against brute force.

use burn::tensor::DType;
use dualspeed_ops::*;

use crate::per_backend;
use crate::support::{tensor, values};

per_backend!(matches_brute_force, lowest_index_wins_ties, survives_zeros_and_nan);

fn picks<B: Backend>(features: &[f64], shape: [usize; 3], keep: usize) -> Vec<i64> {
    let picks = farthest_points(tensor::<B, 3>(features, shape, DType::F32), keep);
    assert_eq!(picks.dims(), [shape[0], keep]);
    picks.into_data().iter::<i64>().collect()
}

/// The definition, in f64, one image.
fn brute_force(features: &[f64], d: usize, keep: usize) -> Vec<i64> {
    let rows: Vec<&[f64]> = features.chunks(d).collect();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let distance = |i: usize, j: usize| {
        1.0 - dot(rows[i], rows[j]) / (dot(rows[i], rows[i]) * dot(rows[j], rows[j])).sqrt()
    };
    let mut chosen: Vec<usize> = Vec::new();
    while chosen.len() < keep {
        let mut best: Option<(f64, usize)> = None;
        for i in (0..rows.len()).filter(|i| !chosen.contains(i)) {
            let others: Vec<usize> = match chosen.is_empty() {
                true => (0..rows.len()).filter(|j| *j != i).collect(),
                false => chosen.clone(),
            };
            let nearest = others.iter().map(|j| distance(i, *j)).fold(f64::MAX, f64::min);
            if best.is_none_or(|(value, _)| nearest > value) {
                best = Some((nearest, i));
            }
        }
        chosen.push(best.expect("keep <= n").1);
    }
    chosen.into_iter().map(|i| i as i64).collect()
}

fn matches_brute_force<B: Backend>(cases: usize) {
    for [b, n, d, keep] in [[2, 6, 5, 4], [3, 49, 17, 9], [1, 81, 64, 81]].into_iter().take(cases) {
        let features = values(b * n * d, 11);
        let expected: Vec<i64> =
            features.chunks(n * d).flat_map(|image| brute_force(image, d, keep)).collect();
        assert_eq!(picks::<B>(&features, [b, n, d], keep), expected);
    }
}

/// Signed unit vectors: distances are exactly 0, 1 or 2, so ties abound and must be broken by index.
fn lowest_index_wins_ties<B: Backend>(_: usize) {
    let rows: [[f64; 3]; 7] = [
        [1., 0., 0.],
        [0., 2., 0.],
        [1., 0., 0.],
        [0., 0., 1.],
        [-4., 0., 0.],
        [0., 1., 0.],
        [0., 0., -1.],
    ];
    let features = rows.concat();
    assert_eq!(picks::<B>(&features, [1, 7, 3], 7), brute_force(&features, 3, 7));
    assert_eq!(picks::<B>(&features, [1, 7, 3], 3), [3, 6, 0]);
}

/// Rows of zeros and of NaN do not spoil the picks of the others: every index is there once.
fn survives_zeros_and_nan<B: Backend>(_: usize) {
    let mut features = values(6 * 4, 3);
    features[4..8].fill(0.0);
    features[12] = f64::NAN;
    let mut picks = picks::<B>(&features, [1, 6, 4], 6);
    picks.sort_unstable();
    assert_eq!(picks, [0, 1, 2, 3, 4, 5]);
}
