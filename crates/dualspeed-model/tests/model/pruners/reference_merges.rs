//! The methods that merge, restated in plain loops over one image, in f64: new tokens of hidden states.

use super::reference::{Image, Rows, by_score, cosine, mean_heads, relevance, sorted};

fn add(to: &mut [f64], weight: f64, x: &[f64]) {
    to.iter_mut().zip(x).for_each(|(to, x)| *to += weight * x);
}

fn mean(rows: &[&Vec<f64>]) -> Vec<f64> {
    let mut sum = vec![0.0; rows[0].len()];
    rows.iter().for_each(|row| add(&mut sum, 1.0 / rows.len() as f64, row));
    sum
}

pub fn visionzip(image: &Image, official: bool, keep: usize) -> Rows {
    let (h, n) = (&image.hidden, image.hidden.len());
    let contextual = ((keep as f64 * 10.0 / 64.0).round() as usize).min(keep - 1);
    let dominant = keep - contextual - usize::from(official);
    let top = sorted(by_score(&mean_heads(&image.attention))[..dominant].to_vec());
    let mut tokens: Rows = Vec::new();
    if official {
        tokens.push(image.class.clone());
    }
    tokens.extend(top.iter().map(|i| h[*i].clone()));
    let rest: Vec<usize> = (0..n).filter(|i| !top.contains(i)).collect();
    if contextual == 0 {
        return tokens;
    }
    let step = (rest.len() / contextual).max(1);
    let targets: Vec<usize> = (0..contextual).map(|i| rest[i * step]).collect();
    let mut assigned: Vec<Vec<&Vec<f64>>> = vec![Vec::new(); contextual];
    for i in rest.iter().filter(|i| !targets.contains(i)) {
        let scores: Vec<f64> =
            targets.iter().map(|t| cosine(&image.keys[*i], &image.keys[*t])).collect();
        assigned[by_score(&scores)[0]].push(&h[*i]);
    }
    for (target, mut members) in targets.iter().zip(assigned) {
        if official {
            let mut token = h[*target].clone();
            if !members.is_empty() {
                add(&mut token, 1.0, &mean(&members));
            }
            tokens.push(token);
        } else {
            members.push(&h[*target]);
            tokens.push(mean(&members));
        }
    }
    tokens
}

/// Outliers of a box plot with numpy's quantiles.
pub fn outliers(values: &[f64]) -> usize {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let quantile = |q: f64| {
        let at = q * (sorted.len() - 1) as f64;
        let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    };
    let (q1, q3) = (quantile(0.25), quantile(0.75));
    values.iter().filter(|v| **v > q3 + 1.5 * (q3 - q1)).count()
}

/// What PruMerge makes of `attended` tokens by attention and the given further ones.
fn merged(
    image: &Image,
    (scores, keys): (&[f64], &Rows),
    selected: &[usize],
    extra: Option<bool>,
) -> Rows {
    let (h, n) = (&image.hidden, image.hidden.len());
    let mut tokens: Rows = Vec::new();
    for i in selected {
        let others: Vec<usize> = (0..n).filter(|j| j != i).collect();
        let near: Vec<f64> = others.iter().map(|j| cosine(&keys[*i], &keys[*j])).collect();
        let mut token = h[*i].clone();
        for at in by_score(&near).into_iter().take(32) {
            add(&mut token, scores[others[at]], &h[others[at]]);
        }
        tokens.push(token);
    }
    if let Some(average) = extra {
        let rest: Vec<usize> = (0..n).filter(|i| !selected.contains(i)).collect();
        let total: f64 = rest.iter().map(|i| scores[*i]).sum();
        let mut token = vec![0.0; h[0].len()];
        for i in rest {
            add(&mut token, scores[i] / if average { total } else { 1.0 }, &h[i]);
        }
        tokens.push(token);
    }
    tokens
}

/// `spaced` evenly placed ones of those not attended.
fn spread(order: &[usize], attended: usize, spaced: usize) -> Vec<usize> {
    let top = order[..attended].to_vec();
    let rest: Vec<usize> = (0..order.len()).filter(|i| !top.contains(i)).collect();
    let more = (0..spaced).map(|i| rest[(2 * i + 1) * rest.len() / (2 * spaced)]);
    sorted(top.iter().copied().chain(more).collect())
}

pub fn prumerge_fixed(image: &Image, plus: bool, keep: usize) -> Rows {
    let scores = mean_heads(&image.attention);
    let count = (keep - 1).max(1);
    let attended = if plus { count.div_ceil(4) } else { count };
    let selected = spread(&by_score(&scores), attended, count - attended);
    merged(image, (&scores, &image.keys), &selected, (keep > 1).then_some(true))
}

pub fn prumerge_adaptive(image: &Image, plus: bool) -> Rows {
    let scores = mean_heads(&image.attention);
    let n = scores.len();
    let attended = outliers(&scores).clamp(1, n - 1);
    let spaced = if plus { (3 * attended).min(n - attended) } else { 0 };
    let selected = spread(&by_score(&scores), attended, spaced);
    merged(image, (&scores, &image.keys), &selected, Some(true))
}

/// `share` is that of outliers in the whole batch.
pub fn prumerge_official(image: &Image, plus: bool, share: f64) -> Rows {
    let scores = &image.last_attention;
    let n = scores.len();
    let share = if plus && share == 0.0 { 1.0 / n as f64 } else { share };
    let attended = ((n as f64 * share) as usize).min(n - 1);
    let mut selected = by_score(scores)[..attended].to_vec();
    if plus {
        let step = (1.0 / share).floor();
        for i in (0..n - 1).step_by(((step / 3.0).floor() as usize).max(1)) {
            if !selected.contains(&i) {
                selected.push(i);
            }
        }
    }
    merged(image, (scores, &image.last_keys), &sorted(selected), Some(false))
}

pub fn trim(image: &Image, sign: f64, keep: usize) -> Rows {
    let h = &image.hidden;
    let top = sorted(by_score(&relevance(image, sign))[..keep - 1].to_vec());
    let rest: Vec<&Vec<f64>> = (0..h.len()).filter(|i| !top.contains(i)).map(|i| &h[i]).collect();
    top.iter().map(|i| h[*i].clone()).chain([mean(&rest)]).collect()
}

/// What TRIM counts outliers among.
pub fn trim_scores(image: &Image, sign: f64) -> Vec<f64> {
    let scores: Vec<f64> = relevance(image, sign).into_iter().map(f64::exp).collect();
    let total: f64 = scores.iter().sum();
    scores.iter().map(|score| score / total).collect()
}

pub fn trim_adaptive(image: &Image, sign: f64) -> Rows {
    let scores = trim_scores(image, sign);
    trim(image, sign, outliers(&scores).clamp(1, scores.len() - 1) + 1)
}

/// `share` is that of outliers in the whole batch.
pub fn trim_official(image: &Image, sign: f64, share: f64) -> Rows {
    let n = image.hidden.len();
    trim(image, sign, ((n as f64 * share) as usize).clamp(1, n - 1) + 1)
}
