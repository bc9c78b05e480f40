//! The methods that select, restated in plain loops over one image, in f64.

pub type Rows = Vec<Vec<f64>>;

/// Everything about one image (or joined tiles), padding taken out.
#[derive(Clone, Debug)]
pub struct Image {
    pub projected: Rows,
    pub hidden: Rows,
    /// `[heads][n]`.
    pub attention: Rows,
    pub keys: Rows,
    pub patch_text: Rows,
    pub class: Vec<f64>,
    pub last_attention: Vec<f64>,
    pub last_keys: Rows,
    pub text: Rows,
    pub question: Rows,
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

pub fn mean_heads(attention: &Rows) -> Vec<f64> {
    let heads = attention.len() as f64;
    (0..attention[0].len()).map(|i| attention.iter().map(|h| h[i]).sum::<f64>() / heads).collect()
}

/// Indices by falling score, lowest index first among equals.
pub fn by_score(scores: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].partial_cmp(&scores[*a]).unwrap());
    order
}

pub fn sorted(mut picks: Vec<usize>) -> Vec<usize> {
    picks.sort_unstable();
    picks
}

pub fn fastervlm(image: &Image, keep: usize) -> Vec<usize> {
    sorted(by_score(&mean_heads(&image.attention))[..keep].to_vec())
}

pub fn divprune(image: &Image, keep: usize) -> Vec<usize> {
    let (x, n) = (&image.projected, image.projected.len());
    let mut picked: Vec<usize> = Vec::new();
    while picked.len() < keep {
        let mut best = (f64::NEG_INFINITY, 0);
        for j in (0..n).filter(|j| !picked.contains(j)) {
            let others: Vec<usize> = match picked.is_empty() {
                true => (0..n).filter(|i| *i != j).collect(),
                false => picked.clone(),
            };
            let nearest =
                others.iter().map(|i| 1.0 - cosine(&x[*i], &x[j])).fold(f64::INFINITY, f64::min);
            if nearest > best.0 {
                best = (nearest, j);
            }
        }
        picked.push(best.1);
    }
    sorted(picked)
}

/// Mean cosine over the question's vectors, signed.
pub fn relevance(image: &Image, sign: f64) -> Vec<f64> {
    let m = image.text.len() as f64;
    let of = |e: &Vec<f64>| sign * image.text.iter().map(|t| dot(e, t)).sum::<f64>() / m;
    image.patch_text.iter().map(of).collect()
}

pub fn determinant(mut a: Rows) -> f64 {
    let n = a.len();
    let mut det = 1.0;
    for i in 0..n {
        let pivot = (i..n).max_by(|p, q| a[*p][i].abs().total_cmp(&a[*q][i].abs())).unwrap();
        if pivot != i {
            a.swap(i, pivot);
            det = -det;
        }
        det *= a[i][i];
        let (above, below) = a.split_at_mut(i + 1);
        let pivot = &above[i];
        for row in below {
            let factor = row[i] / pivot[i];
            row.iter_mut().zip(pivot).skip(i).for_each(|(x, p)| *x -= factor * p);
        }
    }
    det
}

/// Greedy MAP by the definition: the token that makes the determinant of the picked ones' kernel
/// largest. `limits` are minimum and maximum of the relevance that is normalised by.
pub fn cdpruner(image: &Image, sign: f64, limits: Option<(f64, f64)>, keep: usize) -> Vec<usize> {
    let r = relevance(image, sign);
    let (min, max) = limits.unwrap_or_else(|| {
        let least = r.iter().copied().fold(f64::INFINITY, f64::min);
        (least, r.iter().copied().fold(f64::NEG_INFINITY, f64::max))
    });
    let r: Vec<f64> = r.iter().map(|r| (r - min + 1e-6) / (max - min + 1e-6)).collect();
    let x = &image.projected;
    let kernel = |i: usize, j: usize| r[i] * cosine(&x[i], &x[j]) * r[j];
    let mut picked: Vec<usize> = Vec::new();
    while picked.len() < keep {
        let gain = |j: usize| {
            let with: Vec<usize> = picked.iter().copied().chain([j]).collect();
            determinant(
                with.iter().map(|a| with.iter().map(|b| kernel(*a, *b)).collect()).collect(),
            )
        };
        let open = (0..x.len()).filter(|j| !picked.contains(j));
        let best = open.fold((f64::NEG_INFINITY, 0), |best, j| {
            let gain = gain(j);
            if gain > best.0 { (gain, j) } else { best }
        });
        picked.push(best.1);
    }
    sorted(picked)
}

pub fn vispruner(image: &Image, official: bool, keep: usize) -> Vec<usize> {
    let order = by_score(&mean_heads(&image.attention));
    let important = keep / 2;
    let mut rest = order[important..].to_vec();
    while rest.len() > keep - important {
        let evens: Vec<usize> = rest.iter().copied().step_by(2).collect();
        let odds: Vec<usize> = rest.iter().copied().skip(1).step_by(2).collect();
        let closest = |e: &usize| {
            let cosines = odds.iter().map(|o| cosine(&image.hidden[*e], &image.hidden[*o]));
            cosines.fold(f64::NEG_INFINITY, f64::max)
        };
        let scores: Vec<f64> = evens.iter().map(closest).collect();
        let ranked = by_score(&scores);
        let remove = 8.min(rest.len() - (keep - important)).min(evens.len());
        rest = if official {
            let left = ranked[remove..].iter().map(|at| evens[*at]);
            left.chain(odds.iter().copied()).collect()
        } else {
            let gone: Vec<usize> = ranked[..remove].iter().map(|at| evens[*at]).collect();
            rest.into_iter().filter(|token| !gone.contains(token)).collect()
        };
    }
    sorted(order[..important].iter().copied().chain(rest).collect())
}

pub fn holov(image: &Image, ranges: usize, official: bool, keep: usize) -> Vec<usize> {
    let a = mean_heads(&image.attention);
    let n = a.len();
    let ranges = ranges.min(n);
    let mut start = 0;
    let mut members: Vec<Vec<usize>> = Vec::new();
    for range in 0..ranges {
        let size = n / ranges + usize::from(range < n % ranges);
        members.push((start..start + size).collect());
        start += size;
    }
    let variance = |range: &[usize], i: usize| {
        let others = range.len() as f64 - 1.0;
        if range.len() == 1 {
            return 0.0;
        }
        let cosines: Vec<f64> = range
            .iter()
            .map(|j| match i == *j {
                true => 0.0,
                false => cosine(&image.projected[i], &image.projected[*j]),
            })
            .collect();
        let mean = cosines.iter().sum::<f64>() / others;
        let apart = range.iter().zip(&cosines).filter(|(j, _)| official || **j != i);
        apart.map(|(_, c)| (c - mean).powi(2)).sum::<f64>() / others
    };
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let mut varied = vec![0.0; n];
    for range in &members {
        range.iter().for_each(|i| varied[*i] = variance(range, *i));
    }
    let attended: Vec<f64> = a.iter().map(|a| 1000.0 * a).collect();
    let overall = mean(&attended) / (mean(&varied) + 1e-6);
    let weights: Vec<f64> = members
        .iter()
        .map(|range| {
            let of = |x: &[f64]| mean(&range.iter().map(|i| x[*i]).collect::<Vec<_>>());
            let lonely = official && range.len() == 1;
            let (a, v) = (of(&attended) / if lonely { 1000.0 } else { 1.0 }, of(&varied));
            a + 0.09 * v * if official { a / (v + 1e-6) } else { overall }
        })
        .collect();
    let total = weights.iter().sum::<f64>() + 1e-6;
    let mut budgets: Vec<usize> =
        weights.iter().map(|w| (keep as f64 * w / total).floor() as usize).collect();
    let left = keep - budgets.iter().sum::<usize>();
    by_score(&weights).into_iter().take(left).for_each(|range| budgets[range] += 1);
    let mut picked = Vec::new();
    for (range, budget) in members.iter().zip(budgets) {
        let scores: Vec<f64> = range.iter().map(|i| a[*i]).collect();
        picked.extend(by_score(&scores).into_iter().take(budget).map(|at| range[at]));
    }
    let fill: Vec<usize> = by_score(&a).into_iter().filter(|i| !picked.contains(i)).collect();
    picked.extend(fill.into_iter().take(keep - picked.len()));
    sorted(picked)
}

pub fn dart(image: &Image, keep: usize) -> Vec<usize> {
    let norm = |x: &Vec<f64>| x.iter().map(|v| v.abs()).sum::<f64>();
    let largest = |rows: &Rows, count: usize| -> Vec<usize> {
        by_score(&rows.iter().map(norm).collect::<Vec<_>>()).into_iter().take(count).collect()
    };
    let own = largest(&image.projected, 4.min(keep));
    let text = largest(&image.question, 4);
    let mut pivots: Rows = own.iter().map(|i| image.projected[*i].clone()).collect();
    pivots.extend(text.iter().map(|i| image.question[*i].clone()));
    let mut picked = own.clone();
    let left = keep - own.len();
    for (at, pivot) in pivots.iter().enumerate() {
        let quota = left / pivots.len() + usize::from(at < left % pivots.len());
        let mut open: Vec<usize> =
            (0..image.projected.len()).filter(|i| !picked.contains(i)).collect();
        let far = |i: &usize| cosine(pivot, &image.projected[*i]);
        open.sort_by(|a, b| far(a).total_cmp(&far(b)));
        picked.extend(open.into_iter().take(quota));
    }
    sorted(picked)
}

/// Columns that span the same as `basis`, along the principal axes of what it spans: orthogonal iteration inside, of which
/// `None` says that it has not come to rest.
fn principal_axes(centred: &Rows, basis: Rows) -> Option<Rows> {
    let (n, q) = (centred.len(), basis.len());
    let image = |column: &Vec<f64>| -> Vec<f64> {
        let along: Vec<f64> = (0..centred[0].len())
            .map(|k| (0..n).map(|i| centred[i][k] * column[i]).sum())
            .collect();
        centred.iter().map(|row| dot(row, &along)).collect()
    };
    let images: Rows = basis.iter().map(image).collect();
    let inside: Rows = basis.iter().map(|a| images.iter().map(|b| dot(a, b)).collect()).collect();
    let mut axes: Rows =
        (0..q).map(|c| (0..q).map(|r| f64::from(u8::from(r == c)) + 0.1).collect()).collect();
    for _ in 0..3000 {
        let mut next: Rows = Vec::new();
        for axis in &axes {
            let mut v: Vec<f64> = inside.iter().map(|row| dot(row, axis)).collect();
            for earlier in &next {
                let along = dot(earlier, &v);
                v.iter_mut().zip(earlier).for_each(|(v, e)| *v -= along * e);
            }
            let length = dot(&v, &v).sqrt();
            next.push(v.into_iter().map(|v| v / length).collect());
        }
        axes = next;
    }
    let largest = dot(&inside[0], &inside[0]).sqrt();
    for (c, axis) in axes.iter().enumerate() {
        let image: Vec<f64> = inside.iter().map(|row| dot(row, axis)).collect();
        if axes[c + 1..].iter().any(|other| dot(other, &image).abs() > 1e-7 * largest) {
            return None;
        }
    }
    let turned = |axis: &Vec<f64>| -> Vec<f64> {
        (0..n).map(|i| (0..q).map(|c| axis[c] * basis[c][i]).sum()).collect()
    };
    Some(axes.iter().map(turned).collect())
}

/// `None` where a decision hangs on the last digits.
pub fn prunesid(image: &Image, sketch: &[f32], keep: usize) -> Option<Vec<usize>> {
    let (n, q) = (image.hidden.len(), (keep / 4).max(1));
    let d = image.hidden[0].len() as f64;
    let centred: Rows = image
        .hidden
        .iter()
        .map(|h| {
            let s: Vec<f64> = h.iter().map(|x| 1.0 / (1.0 + (-x).exp())).collect();
            let mean = s.iter().sum::<f64>() / d;
            s.into_iter().map(|s| s - mean).collect()
        })
        .collect();
    // Columns of the basis, each of length n.
    let mut basis: Rows =
        (0..q).map(|c| (0..n).map(|r| f64::from(sketch[r * q + c])).collect()).collect();
    for _ in 0..3 {
        let mut next: Rows = Vec::new();
        for column in &basis {
            let mut v: Vec<f64> = (0..n)
                .map(|i| (0..n).map(|j| dot(&centred[i], &centred[j]) / d * column[j]).sum())
                .collect();
            for _ in 0..2 {
                for earlier in next.clone() {
                    let along = dot(&earlier, &v);
                    v.iter_mut().zip(&earlier).for_each(|(v, e)| *v -= along * e);
                }
            }
            let length = dot(&v, &v).sqrt();
            next.push(v.into_iter().map(|v| v / length).collect());
        }
        basis = next;
    }
    let basis = principal_axes(&centred, basis)?;
    let mut groups = Vec::new();
    for i in 0..n {
        let loads: Vec<f64> = basis.iter().map(|column| column[i].abs()).collect();
        let order = by_score(&loads);
        if q > 1 && loads[order[0]] - loads[order[1]] < 1e-3 {
            return None;
        }
        groups.push(order[0]);
    }
    let cosines: Rows =
        image.hidden.iter().map(|a| image.hidden.iter().map(|b| cosine(a, b)).collect()).collect();
    let pairs = (n * (n - 1)) as f64;
    let sum: f64 = (0..n)
        .flat_map(|i| (0..n).map(move |j| (i, j)))
        .map(|(i, j)| if i == j { 0.0 } else { cosines[i][j] })
        .sum();
    let threshold = keep as f64 / 32.0 * sum / pairs;
    if cosines.iter().flatten().any(|c| (c - threshold).abs() < 1e-5) {
        return None;
    }
    let order = by_score(&mean_heads(&image.attention));
    let mut alive: Vec<usize> = Vec::new();
    for i in &order {
        if !alive.iter().any(|j| groups[*j] == groups[*i] && cosines[*i][*j] > threshold) {
            alive.push(*i);
        }
    }
    let count = |g: usize| alive.iter().filter(|i| groups[**i] == g).count();
    let counts: Vec<usize> = (0..q).map(count).collect();
    let filled = counts.iter().filter(|c| **c > 0).count();
    let spare = keep - filled;
    let mut budgets: Vec<usize> = counts.iter().map(|c| spare * c / alive.len()).collect();
    let left = spare - budgets.iter().sum::<usize>();
    let ranked = by_score(&counts.iter().map(|c| *c as f64).collect::<Vec<_>>());
    ranked.into_iter().take(left).for_each(|g| budgets[g] += 1);
    let mut picked = Vec::new();
    for g in 0..q {
        let members = alive.iter().copied().filter(|i| groups[*i] == g);
        picked.extend(members.take(budgets[g] + usize::from(counts[g] > 0)));
    }
    for more in [&alive, &order] {
        let more: Vec<usize> = more.iter().copied().filter(|i| !picked.contains(i)).collect();
        picked.extend(more.into_iter().take(keep - picked.len()));
    }
    Some(sorted(picked))
}
