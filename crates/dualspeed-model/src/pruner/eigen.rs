//! Eigenvectors of small symmetric matrices, on the host.

/// Rounds over all pairs of axes; six or seven settle a matrix of any size in 64 bits.
const SWEEPS: usize = 30;

/// The eigenvectors of a symmetric matrix `[q, q]` as orthonormal columns, those of the largest eigenvalues first: cyclic
/// Jacobi rotations. Only finite numbers give a meaningful result; it ends on any.
pub(super) fn eigenvectors(matrix: &[f64], q: usize) -> Vec<f64> {
    let mut a = matrix.to_vec();
    let mut vectors = vec![0.0; q * q];
    (0..q).for_each(|i| vectors[i * q + i] = 1.0);
    for _ in 0..SWEEPS {
        let total: f64 = a.iter().map(|x| x * x).sum();
        let off = a.iter().enumerate().filter(|(at, _)| at / q != at % q);
        let off: f64 = off.map(|(_, x)| x * x).sum();
        if off <= 1e-26 * total || !total.is_finite() {
            break;
        }
        for p in 0..q {
            for r in p + 1..q {
                rotate(&mut a, &mut vectors, q, p, r);
            }
        }
    }
    let mut order: Vec<usize> = (0..q).collect();
    order.sort_by(|i, j| a[j * q + j].total_cmp(&a[i * q + i]));
    (0..q * q).map(|at| vectors[at / q * q + order[at % q]]).collect()
}

/// Rotates axes `p` and `r` so that the entry between them vanishes.
fn rotate(a: &mut [f64], vectors: &mut [f64], q: usize, p: usize, r: usize) {
    let between = a[p * q + r];
    if between == 0.0 {
        return;
    }
    let theta = (a[r * q + r] - a[p * q + p]) / (2.0 * between);
    let tangent = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
    let cosine = 1.0 / (tangent * tangent + 1.0).sqrt();
    let sine = tangent * cosine;
    let turn = |x: &mut f64, y: &mut f64| {
        (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
    };
    for k in 0..q {
        let (mut x, mut y) = (a[k * q + p], a[k * q + r]);
        turn(&mut x, &mut y);
        (a[k * q + p], a[k * q + r]) = (x, y);
    }
    for k in 0..q {
        let (mut x, mut y) = (a[p * q + k], a[r * q + k]);
        turn(&mut x, &mut y);
        (a[p * q + k], a[r * q + k]) = (x, y);
        let (mut x, mut y) = (vectors[k * q + p], vectors[k * q + r]);
        turn(&mut x, &mut y);
        (vectors[k * q + p], vectors[k * q + r]) = (x, y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dualspeed_core::rng::SplitMix;

    #[test]
    fn columns_are_orthonormal_eigenvectors_by_falling_eigenvalue() {
        let mut rng = SplitMix::new(&[3]);
        for q in [1, 2, 5, 14] {
            let b: Vec<f64> = (0..q * q).map(|_| rng.normal()).collect();
            let entry = |i: usize, j: usize| (0..q).map(|k| b[i * q + k] * b[j * q + k]).sum();
            let a: Vec<f64> = (0..q * q).map(|at| entry(at / q, at % q)).collect();
            let v = eigenvectors(&a, q);
            let column = |c: usize| -> Vec<f64> { (0..q).map(|k| v[k * q + c]).collect() };
            let dot = |x: &[f64], y: &[f64]| -> f64 { x.iter().zip(y).map(|(x, y)| x * y).sum() };
            let mut last = f64::INFINITY;
            for c in 0..q {
                let x = column(c);
                let image: Vec<f64> = a.chunks(q).map(|row| dot(row, &x)).collect();
                let value = dot(&image, &x);
                assert!(value <= last + 1e-9, "{q}: {value} after {last}");
                last = value;
                for (image, x) in image.iter().zip(&x) {
                    assert!((image - value * x).abs() < 1e-9 * a[0].abs().max(1.0), "{q}");
                }
                for other in 0..q {
                    let expected = if other == c { 1.0 } else { 0.0 };
                    assert!((dot(&x, &column(other)) - expected).abs() < 1e-12, "{q}");
                }
            }
        }
        // Zero rows, as of components that are not there, and numbers that are none.
        assert_eq!(eigenvectors(&[0.0; 4], 2), [1.0, 0.0, 0.0, 1.0]);
        assert_eq!(eigenvectors(&[f64::NAN; 4], 2).len(), 4);
    }
}
