//! Every method against its restatement: random cases, half of them tiles with padding.

use burn::tensor::{Tensor, TensorData};
use dualspeed_core::rng::SplitMix;
use dualspeed_model::pruner::PruneSid;
use dualspeed_model::vision::features::{
    CLS_ATTENTION, CLS_HIDDEN, KEYS, LAST_CLS_ATTENTION, LAST_KEYS, PATCH_TEXT,
};
use dualspeed_model::{
    PruneContext, PrunerSpec, QuestionTokens, Registry, TextFeatures, Tiles, VisionFeatures,
    VisualTokens,
};

use super::reference::{self, Image, Rows, mean_heads, relevance};
use super::reference_merges as merges;
use crate::support::{B, KeptTokens, prune, values};

const CASES: u64 = 200;
const D: usize = 12;

/// What a restatement says about one image.
enum Outcome {
    Indices(Vec<usize>),
    Tokens(Rows),
}

/// A batch of rows (tiles), as the library and as plain lists see it.
struct Case {
    visual: VisualTokens<B>,
    rows: Vec<Image>,
    /// Per image its rows; per row its valid tokens.
    images: Vec<Vec<usize>>,
    valid: Vec<Vec<usize>>,
    inverted: bool,
    keep: usize,
}

fn rows(rng: &mut SplitMix, n: usize, d: usize, positive: bool) -> Rows {
    let value = |rng: &mut SplitMix| f64::from(rng.normal() as f32);
    (0..n)
        .map(|_| {
            let row = (0..d).map(|_| value(rng));
            row.map(|x| if positive { x.abs() + 0.01 } else { x }).collect()
        })
        .collect()
}

fn unit(rows: Rows) -> Rows {
    let one = |row: Vec<f64>| {
        let length = reference::dot(&row, &row).sqrt();
        row.into_iter().map(|x| f64::from((x / length) as f32)).collect()
    };
    rows.into_iter().map(one).collect()
}

fn tensor<'a>(images: impl Iterator<Item = &'a Rows>) -> Tensor<B, 3> {
    let images: Vec<&Rows> = images.collect();
    let shape = [images.len(), images[0].len(), images[0][0].len()];
    let flat: Vec<f32> =
        images.iter().flat_map(|rows| rows.iter().flatten().map(|x| *x as f32)).collect();
    Tensor::from_data(TensorData::new(flat, shape), &Default::default())
}

impl Case {
    fn new(seed: u64) -> Self {
        let mut rng = SplitMix::new(&[seed, 77]);
        let tiled = seed % 2 == 1;
        let n = 17 + rng.below(8);
        // Spiky attention, so that box plots have outliers.
        let spiky = |mut a: Rows, rng: &mut SplitMix| {
            for row in &mut a {
                for _ in 0..1 + rng.below(3) {
                    let at = rng.below(row.len());
                    row[at] += 9.0;
                }
                let total: f64 = row.iter().sum();
                row.iter_mut().for_each(|x| *x = f64::from((*x / total) as f32));
            }
            a
        };
        let count = if tiled { 3 } else { 2 };
        let made: Vec<Image> = (0..count)
            .map(|_| {
                let attention = rows(&mut rng, 2, n, true);
                let last = rows(&mut rng, 1, n, true);
                Image {
                    projected: rows(&mut rng, n, D, false),
                    hidden: rows(&mut rng, n, D, false),
                    keys: rows(&mut rng, n, 5, false),
                    patch_text: unit(rows(&mut rng, n, 6, false)),
                    class: rows(&mut rng, 1, D, false).remove(0),
                    last_keys: rows(&mut rng, n, D, false),
                    attention: spiky(attention, &mut rng),
                    last_attention: spiky(last, &mut rng).remove(0),
                    text: Vec::new(),
                    question: Vec::new(),
                }
            })
            .collect();
        let images: Vec<Vec<usize>> =
            if tiled { vec![vec![0], vec![1, 2]] } else { vec![vec![0], vec![1]] };
        let mut made = made;
        let mut text = Vec::new();
        let mut question = Vec::new();
        for tiles in &images {
            text.push(unit(rows(&mut rng, 2, 6, false)));
            question.push(rows(&mut rng, 5, D, false));
            for tile in tiles {
                made[*tile].text = text.last().unwrap().clone();
                made[*tile].question = question.last().unwrap().clone();
            }
        }
        let valid: Vec<Vec<bool>> =
            (0..count).map(|_| (0..n).map(|_| !tiled || rng.below(8) > 0).collect()).collect();
        let (inverted, keep) = (rng.below(2) == 0, 2 + rng.below(8));
        let of = |pick: fn(&Image) -> Rows| {
            let lists: Vec<Rows> = made.iter().map(pick).collect();
            tensor(lists.iter())
        };
        // Attention is kept head by head here, token by token there.
        let features = VisionFeatures::new(of(|i| i.hidden.clone()))
            .with(CLS_ATTENTION, of(|i| i.attention.clone()).swap_dims(1, 2))
            .with(KEYS, of(|i| i.keys.clone()))
            .with(PATCH_TEXT, of(|i| i.patch_text.clone()))
            .with(CLS_HIDDEN, of(|i| vec![i.class.clone()]))
            .with(LAST_CLS_ATTENTION, of(|i| vec![i.last_attention.clone()]).swap_dims(1, 2))
            .with(LAST_KEYS, of(|i| i.last_keys.clone()));
        let per_image = images.iter().map(Vec::len).collect();
        let mask = valid.clone();
        let visual = VisualTokens {
            tiles: tiled.then_some(Tiles { per_image, valid: Some(mask) }),
            text: Some(TextFeatures {
                vectors: tensor(text.iter()),
                lengths: vec![2; 2],
                inverted,
            }),
            question: Some(QuestionTokens { embeds: tensor(question.iter()), lengths: vec![5; 2] }),
            ..VisualTokens::new(of(|i| i.projected.clone()), features)
        };
        let valid = valid.iter().map(|row| (0..n).filter(|i| row[*i]).collect()).collect();
        Self { visual, rows: made, images, valid, inverted, keep }
    }

    /// The decisions that make up one image: the tokens of each joined, their number to keep, and
    /// where they stood in the image (`tile * n + index`).
    fn parts(&self, image: usize, joined: bool) -> Vec<(Image, usize, Vec<usize>)> {
        let n = self.rows[0].projected.len();
        let part = |tiles: &[(usize, usize)]| {
            let first = &self.rows[tiles[0].1];
            let mut whole = Image {
                projected: Vec::new(),
                hidden: Vec::new(),
                attention: vec![Vec::new(); first.attention.len()],
                keys: Vec::new(),
                patch_text: Vec::new(),
                class: first.class.clone(),
                last_attention: Vec::new(),
                last_keys: Vec::new(),
                text: first.text.clone(),
                question: first.question.clone(),
            };
            let (mut keep, mut origins) = (0, Vec::new());
            for (place, row) in tiles {
                let (from, valid) = (&self.rows[*row], &self.valid[*row]);
                for i in valid {
                    whole.projected.push(from.projected[*i].clone());
                    whole.hidden.push(from.hidden[*i].clone());
                    whole.keys.push(from.keys[*i].clone());
                    whole.patch_text.push(from.patch_text[*i].clone());
                    whole.last_attention.push(from.last_attention[*i]);
                    whole.last_keys.push(from.last_keys[*i].clone());
                    let heads = whole.attention.iter_mut().zip(&from.attention);
                    heads.for_each(|(to, from)| to.push(from[*i]));
                    origins.push(place * n + i);
                }
                keep += (self.keep * valid.len() / n).max(1);
            }
            (whole, keep, origins)
        };
        let tiles: Vec<(usize, usize)> = self.images[image].iter().copied().enumerate().collect();
        match joined {
            true => vec![part(&tiles)],
            false => tiles.iter().map(|tile| part(&[*tile])).collect(),
        }
    }
}

/// Compares `spec` with `restated(case, image, keep)` over random cases; `None` skips a case whose
/// decision hangs on rounding.
fn check(spec: &str, restated: impl Fn(&Case, &Image, usize) -> Option<Outcome>) {
    let mut seed = 0;
    let mut compared = 0;
    while compared < CASES {
        seed += 1;
        assert!(seed < 4 * CASES, "{spec}: too few cases that do not hang on rounding");
        let case = Case::new(seed);
        let joined = seed % 4 == 3;
        let scope = if joined { ":scope=image" } else { "" };
        let parsed: PrunerSpec = format!("{spec}{scope}").parse().unwrap();
        let pruner = Registry::<B>::builtin().build(&parsed).unwrap();
        let ctx = PruneContext {
            images: (0..case.images.len()).map(|i| (format!("s{i}"), 0)).collect(),
            verify: true,
            ..PruneContext::default()
        };
        let kept = prune(&*pruner, &case.visual, case.keep, &ctx).unwrap();
        let expected: Option<Vec<Vec<(Outcome, Vec<usize>)>>> = (0..case.images.len())
            .map(|image| {
                let parts = case.parts(image, joined).into_iter();
                parts
                    .map(|(image, keep, origins)| Some((restated(&case, &image, keep)?, origins)))
                    .collect()
            })
            .collect();
        if let Some(expected) = expected {
            compared += 1;
            expected.into_iter().enumerate().for_each(|(image, parts)| {
                compare(&format!("{spec}, case {seed}, image {image}"), &kept, image, parts)
            });
        }
    }
}

fn compare(what: &str, kept: &KeptTokens<B>, image: usize, parts: Vec<(Outcome, Vec<usize>)>) {
    let (most, length) = (kept.selection.longest(), kept.lengths[image]);
    let mut indices = Vec::new();
    let mut tokens = Vec::new();
    for (outcome, origins) in parts {
        match outcome {
            Outcome::Indices(picks) => indices.extend(picks.into_iter().map(|i| origins[i] as i64)),
            Outcome::Tokens(rows) => tokens.extend(rows),
        }
    }
    if let Some(found) = &kept.indices {
        let found: Vec<i64> = found.to_data().iter::<i64>().collect();
        assert_eq!(found[image * most..image * most + length], indices, "{what}");
        return;
    }
    assert!(kept.unprojected, "{what}");
    assert_eq!(tokens.len(), length, "{what}: tokens");
    let found = values(&kept.tokens);
    let found = &found[image * most * D..(image * most + length) * D];
    for (found, expected) in found.iter().zip(tokens.iter().flatten()) {
        let error = (f64::from(*found) - expected).abs();
        assert!(error <= 1e-5 * (1.0 + expected.abs()), "{what}: {found} and {expected}");
    }
}

fn sign(case: &Case) -> f64 {
    if case.inverted { -1.0 } else { 1.0 }
}

fn picks(
    restated: impl Fn(&Image, usize) -> Vec<usize>,
) -> impl Fn(&Case, &Image, usize) -> Option<Outcome> {
    move |_, image, keep| Some(Outcome::Indices(restated(image, keep)))
}

fn tokens(
    restated: impl Fn(&Image, usize) -> Rows,
) -> impl Fn(&Case, &Image, usize) -> Option<Outcome> {
    move |_, image, keep| Some(Outcome::Tokens(restated(image, keep)))
}

#[test]
fn divprune_and_fastervlm() {
    check("divprune", picks(reference::divprune));
    check("fastervlm", picks(reference::fastervlm));
}

#[test]
fn cdpruner() {
    check("cdpruner", |case, image, keep| {
        // Beyond the rank of the kernel every determinant is 0.
        if keep + 2 > D {
            return None;
        }
        Some(Outcome::Indices(reference::cdpruner(image, sign(case), None, keep)))
    });
}

#[test]
fn cdpruner_official_normalises_over_the_batch() {
    check("cdpruner:compat=official", |case, image, keep| {
        // Rows of one decision are those of equal length and count; with tiles they vary.
        if case.visual.tiles.is_some() {
            return None;
        }
        let all: Vec<f64> =
            case.rows.iter().flat_map(|image| relevance(image, sign(case))).collect();
        let min = all.iter().copied().fold(f64::INFINITY, f64::min);
        let max = all.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        Some(Outcome::Indices(reference::cdpruner(image, sign(case), Some((min, max)), keep)))
    });
}

#[test]
fn vispruner() {
    check("vispruner", picks(|image, keep| reference::vispruner(image, false, keep)));
    check(
        "vispruner:compat=official",
        picks(|image, keep| reference::vispruner(image, true, keep)),
    );
}

#[test]
fn holov() {
    check("holov", picks(|image, keep| reference::holov(image, 16, false, keep)));
    check("holov:ranges=4", picks(|image, keep| reference::holov(image, 4, false, keep)));
    check("holov:compat=official", picks(|image, keep| reference::holov(image, 16, true, keep)));
}

#[test]
fn dart() {
    check("dart", picks(reference::dart));
}

#[test]
fn prunesid() {
    check("prunesid", |_, image, keep| {
        let sketch = PruneSid::sketch(image.hidden.len(), (keep / 4).max(1));
        reference::prunesid(image, &sketch, keep).map(Outcome::Indices)
    });
}

#[test]
fn visionzip() {
    check("visionzip", tokens(|image, keep| merges::visionzip(image, false, keep)));
    check("visionzip:compat=official", tokens(|image, keep| merges::visionzip(image, true, keep)));
}

#[test]
fn prumerge() {
    for (name, plus) in [("prumerge", false), ("prumerge+", true)] {
        check(name, tokens(|image, keep| merges::prumerge_fixed(image, plus, keep)));
        let adaptive = format!("{name}:adaptive=true");
        check(&adaptive, tokens(|image, _| merges::prumerge_adaptive(image, plus)));
        check(&format!("{name}:compat=official"), |case, image, _| {
            if case.visual.tiles.is_some() {
                return None;
            }
            let all: Vec<f64> = case.rows.iter().flat_map(|i| i.last_attention.clone()).collect();
            let share = merges::outliers(&all) as f64 / all.len() as f64;
            Some(Outcome::Tokens(merges::prumerge_official(image, plus, share)))
        });
    }
}

#[test]
fn trim() {
    check("trim", |case, image, keep| {
        if keep == 1 {
            return None;
        }
        Some(Outcome::Tokens(merges::trim(image, sign(case), keep)))
    });
    check("trim:adaptive=true", |case, image, _| {
        Some(Outcome::Tokens(merges::trim_adaptive(image, sign(case))))
    });
    check("trim:compat=official:adaptive=true", |case, image, _| {
        if case.visual.tiles.is_some() {
            return None;
        }
        let all: Vec<f64> =
            case.rows.iter().flat_map(|i| merges::trim_scores(i, sign(case))).collect();
        let share = merges::outliers(&all) as f64 / all.len() as f64;
        Some(Outcome::Tokens(merges::trim_official(image, sign(case), share)))
    });
}

/// The restatements themselves tell methods apart: they are not all the same picks.
#[test]
fn cases_are_not_trivial() {
    let case = Case::new(2);
    let (image, keep, _) = case.parts(0, false).remove(0);
    let picks = [
        reference::divprune(&image, keep),
        reference::fastervlm(&image, keep),
        reference::holov(&image, 16, false, keep),
        reference::dart(&image, keep),
    ];
    assert!(picks.iter().any(|p| *p != picks[0]), "{picks:?}");
    assert!(mean_heads(&image.attention).iter().all(|a| *a > 0.0));
}
