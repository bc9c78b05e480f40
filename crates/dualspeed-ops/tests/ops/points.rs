//! Max-min diverse selection against brute force.

use burn::tensor::DType;
use dualspeed_ops::*;

use crate::per_backend;
use crate::support::{tensor, values};

per_backend!(
    matches_brute_force,
    lowest_index_wins_ties,
    survives_zeros_and_nan,
    greedy_map_makes_determinants_largest,
    greedy_map_past_the_rank_and_nan,
    greedy_map_equals_the_plain_body,
);

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

fn map_picks<B: Backend>(features: &[f64], shape: [usize; 3], keep: usize) -> Vec<i64> {
    let picks = greedy_map(tensor::<B, 3>(features, shape, DType::F32), keep);
    assert_eq!(picks.dims(), [shape[0], keep]);
    picks.into_data().iter::<i64>().collect()
}

/// Volume of the parallelepiped of some rows, squared, by Gram-Schmidt in f64.
fn volume(rows: &[Vec<f64>]) -> f64 {
    let mut basis: Vec<Vec<f64>> = Vec::new();
    let mut volume = 1.0;
    for row in rows {
        let mut left = row.clone();
        for unit in &basis {
            let along: f64 = unit.iter().zip(&left).map(|(u, x)| u * x).sum();
            left.iter_mut().zip(unit).for_each(|(x, u)| *x -= along * u);
        }
        let length = left.iter().map(|x| x * x).sum::<f64>().sqrt();
        volume *= length * length;
        basis.push(left.into_iter().map(|x| x / length.max(1e-300)).collect());
    }
    volume
}

fn greedy_map_makes_determinants_largest<B: Backend>(cases: usize) {
    for [b, n, d, keep] in [[2, 6, 5, 4], [3, 49, 17, 9], [1, 81, 64, 33]].into_iter().take(cases) {
        let features = values(b * n * d, 12);
        let mut expected = Vec::new();
        for image in features.chunks(n * d) {
            let rows: Vec<Vec<f64>> = image.chunks(d).map(<[f64]>::to_vec).collect();
            let mut chosen: Vec<usize> = Vec::new();
            while chosen.len() < keep {
                let with = |j: usize| {
                    let rows: Vec<Vec<f64>> =
                        chosen.iter().chain([&j]).map(|i| rows[*i].clone()).collect();
                    volume(&rows)
                };
                let open = (0..n).filter(|j| !chosen.contains(j));
                let best = open.fold((-1.0, 0), |best, j| {
                    let volume = with(j);
                    if volume > best.0 { (volume, j) } else { best }
                });
                chosen.push(best.1);
            }
            expected.extend(chosen.into_iter().map(|i| i as i64));
        }
        assert_eq!(map_picks::<B>(&features, [b, n, d], keep), expected);
    }
}

/// Rows in the span of the picked ones follow in index order; a row of NaN comes last.
fn greedy_map_past_the_rank_and_nan<B: Backend>(_: usize) {
    let rows: [[f64; 3]; 6] =
        [[0., 0., 0.], [1., 0., 0.], [f64::NAN, 0., 0.], [0., 3., 0.], [2., 0., 0.], [1., 1., 0.]];
    assert_eq!(map_picks::<B>(&rows.concat(), [1, 6, 3], 6), [3, 4, 0, 1, 5, 2]);
    assert_eq!(map_picks::<B>(&[1.0; 8], [1, 4, 2], 4), [0, 1, 2, 3]);
}

fn greedy_map_equals_the_plain_body<B: Backend>(cases: usize) {
    for [b, n, d, keep] in
        [[2, 7, 5, 4], [2, 130, 33, 20], [1, 200, 96, 50]].into_iter().take(cases)
    {
        let features = tensor::<B, 3>(&values(b * n * d, 13), [b, n, d], DType::F32);
        let plain = plain::greedy_map::<B>(crate::support::primitive(features.clone()), keep);
        let plain = burn::tensor::Tensor::<B, 2, burn::tensor::Int>::from_primitive(plain);
        let fast = greedy_map(features, keep);
        let list = |x: burn::tensor::Tensor<B, 2, burn::tensor::Int>| -> Vec<i64> {
            x.into_data().iter::<i64>().collect()
        };
        assert_eq!(list(fast), list(plain));
    }
}
