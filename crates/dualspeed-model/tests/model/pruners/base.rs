//! What holds for every registered pruner, and each pruner against a restatement.

use burn::tensor::{Int, Tensor};
use dualspeed_core::rng::SplitMix;
use dualspeed_model::vision::features::{
    CLS_ATTENTION, CLS_HIDDEN, HIDDEN, KEYS, LAST_CLS_ATTENTION, LAST_KEYS, PATCH_TEXT,
};
use dualspeed_model::{
    Kept, Needs, PruneContext, PruneError, Pruner, PrunerSpec, QuestionTokens, Registry, Rounding,
    TextFeatures, VisionFeatures, VisualTokens, keep_count, select,
};
use dualspeed_ops::Backend;

use crate::support::{A, B, prune, random, values};

pub fn visual<T: Backend>(images: usize, n: usize, d: usize, seed: u64) -> VisualTokens<T> {
    let attention = |heads, seed| random([images, heads, n], seed).abs().swap_dims(1, 2);
    let features = VisionFeatures::new(random([images, n, d], seed + 1))
        .with(CLS_ATTENTION, attention(2, seed + 2))
        .with(KEYS, random([images, n, 3], seed + 3))
        .with(PATCH_TEXT, random([images, n, 3], seed + 4))
        .with(CLS_HIDDEN, random([images, 1, d], seed + 5))
        .with(LAST_CLS_ATTENTION, attention(1, seed + 6))
        .with(LAST_KEYS, random([images, n, d], seed + 7));
    let text = TextFeatures {
        vectors: random([images, 2, 3], seed + 8),
        lengths: vec![2; images],
        inverted: seed.is_multiple_of(2),
    };
    let embeds = random([images, 5, d], seed + 9);
    VisualTokens {
        text: Some(text),
        question: Some(QuestionTokens { embeds, lengths: vec![5; images] }),
        ..VisualTokens::new(random([images, n, d], seed), features)
    }
}

pub fn ctx(images: usize) -> PruneContext {
    let images = (0..images).map(|i| (format!("s{i}"), 0)).collect();
    PruneContext { seed: 1, step: 2, images, ..PruneContext::default() }
}

pub fn ints(x: &Tensor<B, 2, Int>) -> Vec<i64> {
    x.to_data().iter::<i64>().collect()
}

#[test]
fn every_registered_pruner_keeps_the_promises_of_the_base() {
    let registry = Registry::<B>::builtin();
    let (images, n, keep) = (3, 16, 4);
    let tokens = visual::<B>(images, n, 5, 1);
    for name in registry.names() {
        let pruner = registry.build(&PrunerSpec::new(&name)).unwrap();
        assert_eq!(pruner.name(), name);
        let run = |keep| prune(&*pruner, &tokens, keep, &ctx(images));
        assert!(matches!(run(0).map(drop), Err(PruneError::KeepZero { .. })), "{name}");
        assert!(matches!(run(n + 1).map(drop), Err(PruneError::KeepTooMany { .. })), "{name}");
        if pruner.keeps_all() {
            assert!(matches!(run(keep).map(drop), Err(PruneError::CannotPrune { .. })), "{name}");
            assert_eq!(values(&run(n).unwrap().tokens), values(&tokens.projected));
            continue;
        }
        assert!(matches!(run(n).map(drop), Err(PruneError::NothingPruned { .. })), "{name}");
        let kept = run(keep).unwrap();
        if kept.selection.layer_drop().is_some() {
            assert_eq!(values(&kept.tokens), values(&tokens.projected), "{name}");
            continue;
        }
        assert_eq!(kept.tokens.dims(), [images, keep, 5], "{name}");
        assert_eq!(kept.lengths, [keep; 3], "{name}");
        kept.selection.verify(&name, n).unwrap();
        assert_eq!(values(&kept.tokens), values(&run(keep).unwrap().tokens), "{name} repeats");
        // Each image is pruned as if it were alone, but for the random pruner's sample ids.
        if let Some(indices) = &kept.indices {
            for (image, picks) in ints(indices).chunks(keep).enumerate() {
                for (row, pick) in picks.iter().enumerate() {
                    let row = kept.tokens.clone().slice([image..image + 1, row..row + 1, 0..5]);
                    let pick = *pick as usize;
                    let from =
                        tokens.projected.clone().slice([image..image + 1, pick..pick + 1, 0..5]);
                    assert_eq!(values(&row), values(&from), "{name}");
                }
            }
        }
    }
}

#[test]
fn gradient_flows_to_kept_tokens_and_nowhere_else() {
    let selecting = [
        "uniform",
        "divprune",
        "fastervlm",
        "random",
        "avgpool2d",
        "cdpruner",
        "vispruner",
        "holov",
        "dart",
        "prunesid",
    ];
    for name in selecting {
        let pruner = Registry::<A>::builtin().build(&PrunerSpec::new(name)).unwrap();
        let mut tokens = visual::<A>(2, 16, 5, 3);
        tokens.projected = tokens.projected.require_grad();
        let kept = prune(&*pruner, &tokens, 4, &ctx(2)).unwrap();
        let grads = kept.tokens.sum().backward();
        let grad = values(&tokens.projected.grad(&grads).unwrap());
        let rows: Vec<f32> = grad.chunks(5).map(|row| row[0]).collect();
        match kept.indices {
            Some(indices) => {
                let mut expected = vec![0.0; 32];
                for (at, pick) in ints(&indices.inner()).iter().enumerate() {
                    expected[at / 4 * 16 + *pick as usize] = 1.0;
                }
                assert_eq!(rows, expected, "{name}");
            }
            None => assert!(rows.iter().all(|row| (row - 0.25).abs() < 1e-6), "{name}: {rows:?}"),
        }
    }
}

/// DivPrune by the book, in f64, with distances to every picked token recomputed each time.
fn brute_force(features: &[Vec<f64>], keep: usize) -> Vec<i64> {
    let n = features.len();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
    let distance = |i: usize, j: usize| {
        let (a, b) = (&features[i], &features[j]);
        1.0 - dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
    };
    let mut picked: Vec<usize> = Vec::new();
    while picked.len() < keep {
        let mut best: Option<(usize, f64)> = None;
        for j in (0..n).filter(|j| !picked.contains(j)) {
            let others: Vec<usize> = if picked.is_empty() {
                (0..n).filter(|i| *i != j).collect()
            } else {
                picked.clone()
            };
            let nearest = others.iter().map(|i| distance(*i, j)).fold(f64::INFINITY, f64::min);
            // Strictly farther, with a margin for rounding: equal distances leave the lower index.
            if best.is_none_or(|(_, farthest)| nearest > farthest + 1e-6) {
                best = Some((j, nearest));
            }
        }
        picked.push(best.unwrap().0);
    }
    picked.sort_unstable();
    picked.into_iter().map(|i| i as i64).collect()
}

#[test]
fn divprune_equals_brute_force_also_with_ties() {
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let mut rng = SplitMix::new(&[4]);
    for round in 0..60 {
        let (images, n, d) = (2, 9 + rng.below(8), 2 + rng.below(3));
        let keep = 1 + rng.below(n - 2);
        // Every other round on a grid of unit axes: exact ties and duplicates abound.
        let ties = round % 2 == 1;
        let features: Vec<f32> = (0..images * n)
            .flat_map(|_| {
                let axis = rng.below(d);
                let sign = if rng.below(2) == 0 { 1.0 } else { -1.0 };
                let free: Vec<f32> = (0..d).map(|_| rng.normal() as f32).collect();
                (0..d)
                    .map(|i| if ties { if i == axis { sign } else { 0.0 } } else { free[i] })
                    .collect::<Vec<f32>>()
            })
            .collect();
        let projected = Tensor::<B, 1>::from_floats(features.as_slice(), &Default::default())
            .reshape([images, n, d]);
        let tokens = VisualTokens::new(projected.clone(), VisionFeatures::new(projected));
        let kept = prune(&*pruner, &tokens, keep, &ctx(images)).unwrap();
        let picks = ints(kept.indices.as_ref().unwrap());
        for (image, picks) in picks.chunks(keep).enumerate() {
            let rows: Vec<Vec<f64>> = features[image * n * d..(image + 1) * n * d]
                .chunks(d)
                .map(|row| row.iter().map(|x| f64::from(*x)).collect())
                .collect();
            assert_eq!(picks, brute_force(&rows, keep), "round {round}, ties {ties}");
        }
    }
}

#[test]
fn fastervlm_takes_the_most_attended_lowest_index_first() {
    let mut tokens = visual::<B>(1, 6, 2, 1);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("fastervlm")).unwrap();
    let picks = |tokens: &VisualTokens<B>, keep| {
        prune(&*pruner, tokens, keep, &ctx(1)).map(|kept| ints(&kept.indices.unwrap()))
    };
    // Two heads whose means are 0.25 0.5 0.0 0.5 1.0 0.5, exactly: the tie is cut at index 3.
    let heads = [[0.5f32, 0.5, 0.0, 0.25, 1.0, 0.0], [0.0, 0.5, 0.0, 0.75, 1.0, 1.0]];
    let attention = Tensor::<B, 2>::from_floats(heads, &Default::default()).transpose().unsqueeze();
    tokens.features = tokens.features.with(CLS_ATTENTION, attention);
    assert_eq!(picks(&tokens, 3).unwrap(), [1, 3, 4]);
    tokens.features = VisionFeatures::new(tokens.features.hidden());
    let error = picks(&tokens, 3).unwrap_err();
    assert!(
        matches!(error, PruneError::MissingFeature { feature, .. } if feature == CLS_ATTENTION)
    );
}

#[test]
fn random_is_a_function_of_seed_step_and_sample_only() {
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("random")).unwrap();
    let picks = |ctx: &PruneContext| {
        let tokens = visual::<B>(ctx.images.len(), 16, 2, 1);
        ints(&prune(&*pruner, &tokens, 5, ctx).unwrap().indices.unwrap())
    };
    let both = picks(&ctx(2));
    let alone = PruneContext { images: vec![("s1".into(), 0)], ..ctx(0) };
    assert_eq!(both[5..], picks(&alone));
    assert_ne!(both[..5], both[5..]);
    assert_ne!(both, picks(&PruneContext { step: 3, ..ctx(2) }));
    assert_ne!(both, picks(&PruneContext { seed: 3, ..ctx(2) }));
}

#[test]
fn avgpool2d_averages_cells() {
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("avgpool2d")).unwrap();
    let projected =
        Tensor::<B, 1, Int>::arange(0..16, &Default::default()).float().reshape([1, 16, 1]);
    let tokens = VisualTokens::new(projected.clone(), VisionFeatures::new(projected));
    let kept = prune(&*pruner, &tokens, 4, &ctx(1)).unwrap();
    assert_eq!(values(&kept.tokens), [2.5, 4.5, 10.5, 12.5]);
    let error = select(&*pruner, &tokens, 7, &ctx(1)).unwrap_err();
    assert!(matches!(error, PruneError::NoGrid { nearest: 6, .. }), "{error}");
}

/// A pruner that breaks its promise.
#[derive(Debug)]
struct Twice;

impl<T: Backend> Pruner<T> for Twice {
    fn name(&self) -> &str {
        "twice"
    }

    fn prune(
        &self,
        visual: &VisualTokens<T>,
        keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<T>, PruneError> {
        Ok(Kept::Select(Tensor::ones([visual.num_images(), keep], &visual.projected.device())))
    }
}

#[test]
fn a_registered_pruner_is_built_by_name_and_checked() {
    let registry = Registry::<B>::builtin().with("twice", |_| Ok(Box::new(Twice)));
    let pruner = registry.build(&PrunerSpec::new("twice")).unwrap();
    let kept = select(&*pruner, &visual(1, 6, 2, 1), 2, &ctx(1)).unwrap();
    assert!(matches!(kept.verify("twice", 6), Err(PruneError::Picks { image: 0, .. })));
    let error = registry.build(&PrunerSpec::new("divprun")).unwrap_err().to_string();
    assert!(error.contains("did you mean `divprune`?"), "{error}");
}

#[test]
fn counts_round_as_said() {
    assert_eq!(keep_count(576, 0.9, Rounding::Trunc), 57);
    assert_eq!(keep_count(576, 0.9, Rounding::Round), 58);
    assert_eq!(keep_count(5, 0.5, Rounding::HalfEven), 2);
    assert_eq!(keep_count(5, 0.5, Rounding::Round), 3);
    assert_eq!(keep_count(144, 0.999, Rounding::Trunc), 1);
    assert_eq!(keep_count(144, 0.0, Rounding::Trunc), 144);
}

/// A pruner that reads a feature that this crate does not know.
#[derive(Debug)]
struct Saliency;

impl<T: Backend> Pruner<T> for Saliency {
    fn name(&self) -> &str {
        "saliency"
    }

    fn needs(&self) -> Needs {
        Needs::of(["saliency"])
    }

    fn prune(
        &self,
        visual: &VisualTokens<T>,
        keep: usize,
        _ctx: &PruneContext,
    ) -> Result<Kept<T>, PruneError> {
        let saliency = visual.features.get("saliency").expect("the base checks needs");
        let [images, n, _] = saliency.dims();
        Ok(Kept::Select(dualspeed_model::pruner::top_indices(saliency.reshape([images, n]), keep)))
    }
}

#[test]
fn a_feature_of_ones_own_goes_by_its_name() {
    let mut tokens = visual::<B>(2, 4, 3, 1);
    let error = select(&Saliency, &tokens, 2, &ctx(2)).unwrap_err();
    assert!(matches!(error, PruneError::MissingFeature { feature, .. } if feature == "saliency"));
    let saliency = [[[0.1], [0.4], [0.2], [0.3]], [[0.9], [0.1], [0.2], [0.8]]];
    let saliency = Tensor::<B, 3>::from_floats(saliency, &Default::default());
    tokens.features = tokens.features.with("saliency", saliency);
    let kept = prune(&Saliency, &tokens, 2, &ctx(2)).unwrap();
    assert_eq!(ints(&kept.indices.unwrap()), [1, 3, 0, 3]);
    // Padding is taken out of it as out of any other feature.
    let valid = vec![vec![true, false, true, true], vec![true; 4]];
    tokens.tiles = Some(dualspeed_model::Tiles { per_image: vec![1, 1], valid: Some(valid) });
    let kept = prune(&Saliency, &tokens, 3, &ctx(2)).unwrap();
    assert_eq!(kept.lengths, [2, 3]);
    assert_eq!(ints(&kept.indices.unwrap())[..2], [2, 3]);
}

/// A selection is decided once and carried out on whatever is asked for.
#[test]
fn a_selection_is_carried_out_on_any_source() {
    let tokens = visual::<B>(2, 16, 5, 3);
    for (name, merges) in [("divprune", false), ("avgpool2d", true), ("visionzip", true)] {
        let pruner = Registry::<B>::builtin().build(&PrunerSpec::new(name)).unwrap();
        let selection = select(&*pruner, &tokens, 4, &ctx(2)).unwrap();
        assert_eq!(selection.is_merge(), merges, "{name}");
        assert_eq!((selection.lengths(), selection.longest()), (&[4, 4][..], 4));
        let (a, b) = (random::<B, 3>([2, 16, 7], 1), random::<B, 3>([2, 16, 7], 2));
        let apply = |x: &Tensor<B, 3>| selection.apply_to(x.clone());
        // Linear in what it is carried out on.
        let both = values(&apply(&(a.clone() + b.clone())));
        crate::support::assert_close(&both, &values(&(apply(&a) + apply(&b))), 1e-5);
        let kept = selection.kept(16);
        assert_eq!(kept.is_none(), merges, "{name}");
        let Some(kept) = kept else { continue };
        let picks = ints(&selection.picks(16).unwrap());
        assert_eq!(kept.concat(), picks.iter().map(|pick| *pick as usize).collect::<Vec<_>>());
        let rows = values(&apply(&a));
        for (at, (image, token)) in kept
            .iter()
            .enumerate()
            .flat_map(|(i, own)| own.iter().map(move |t| (i, *t)))
            .enumerate()
        {
            let row = a.clone().narrow(0, image, 1).narrow(1, token, 1);
            assert_eq!(rows[at * 7..(at + 1) * 7], values(&row));
        }
        let hidden = tokens.features.get(HIDDEN).unwrap();
        assert_eq!(values(&selection.apply_to_features(&tokens.features)), values(&apply(&hidden)));
    }
}
