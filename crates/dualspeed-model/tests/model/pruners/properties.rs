//! What holds for all pruners over random and degenerate inputs.

use burn::tensor::Tensor;
use dualspeed_core::rng::SplitMix;
use dualspeed_model::vision::features::{PATCH_TEXT, TEXT};
use dualspeed_model::{
    NameTower, PruneContext, PruneError, Pruner, PrunerSpec, Registry, TextTower, VisionFeatures,
    VisualTokens, select,
};

use super::base::{ctx, ints, visual};
use crate::support::{B, KeptTokens, prune, random, values};

fn build(spec: &str) -> Box<dyn Pruner<B>> {
    Registry::builtin().build(&spec.parse::<PrunerSpec>().unwrap()).unwrap()
}

/// Every registered pruner that selects or merges before the decoder, in all its variants.
fn all() -> Vec<String> {
    let names = Registry::<B>::builtin().names();
    let plain = names.into_iter().filter(|name| !["none", "pyramiddrop"].contains(&name.as_str()));
    let variants = [
        "vispruner:compat=official",
        "visionzip:compat=official",
        "prumerge:compat=official",
        "prumerge+:compat=official",
        "prumerge:adaptive=true",
        "prumerge+:adaptive=true",
        "trim:adaptive=true",
        "holov:compat=official",
        "holov:ranges=3",
        "vispruner:important=0",
        "vispruner:important=1",
        "visionzip:contextual=0",
        "dart:text_pivots=0",
    ];
    plain.chain(variants.map(String::from)).collect()
}

fn run(spec: &str, tokens: &VisualTokens<B>, keep: usize) -> KeptTokens<B> {
    let ctx = PruneContext { verify: true, ..ctx(tokens.num_images()) };
    let kept = prune(&*build(spec), tokens, keep, &ctx);
    kept.unwrap_or_else(|error| panic!("{spec}, keep {keep}: {error}"))
}

/// Promised counts and indices; features are numbers.
fn sound(spec: &str, kept: &KeptTokens<B>, n: usize, keep: usize) {
    kept.selection.verify(spec, n).unwrap();
    let adaptive = spec.contains("adaptive") || spec.contains("prumerge:c") || spec.contains("+:c");
    if adaptive {
        assert!(kept.lengths.iter().all(|length| (1..=n + 1).contains(length)), "{spec}");
    } else {
        assert!(kept.lengths.iter().all(|length| *length == keep), "{spec}: {:?}", kept.lengths);
    }
    assert!(values(&kept.tokens).iter().all(|x| x.is_finite()), "{spec}, keep {keep}");
}

/// avgpool2d cannot make every count.
fn feasible(spec: &str, side: usize, keep: usize) -> bool {
    spec != "avgpool2d"
        || (1..=side)
            .any(|rows| keep.is_multiple_of(rows) && keep / rows <= side && rows <= keep / rows)
}

#[test]
fn counts_and_indices_are_sound_over_random_inputs() {
    let mut rng = SplitMix::new(&[9]);
    for spec in all() {
        for _ in 0..12 {
            let side = 3 + rng.below(3);
            let n = side * side;
            let keep = 1 + rng.below(n - 1);
            if feasible(&spec, side, keep) {
                let tokens = visual(1 + rng.below(3), n, 6, rng.next_u64() >> 32);
                sound(&spec, &run(&spec, &tokens, keep), n, keep);
            }
        }
    }
}

#[test]
fn extreme_counts_are_kept() {
    for spec in all() {
        for (side, keeps) in [(4, [1, 2, 15]), (5, [1, 4, 24])] {
            for keep in keeps.into_iter().filter(|keep| feasible(&spec, side, *keep)) {
                sound(&spec, &run(&spec, &visual(2, side * side, 5, 4), keep), side * side, keep);
            }
        }
    }
}

/// All tokens equal; tokens of zeros; attention of zeros.
#[test]
fn degenerate_inputs_are_defined() {
    let flat = |x: &Tensor<B, 3>| x.clone().zeros_like();
    for spec in all() {
        for keep in [1, 4, 8] {
            let mut tokens = visual(2, 16, 5, 1);
            tokens.projected = flat(&tokens.projected).add_scalar(0.5);
            tokens.features = tokens.features.map(|_, x| flat(&x).add_scalar(0.25));
            sound(&spec, &run(&spec, &tokens, keep), 16, keep);
            let mut tokens = visual(2, 16, 5, 1);
            tokens.projected = flat(&tokens.projected);
            tokens.features = tokens.features.map(|_, x| flat(&x));
            tokens.question = tokens.question.map(|mut question| {
                (question.embeds, question.lengths) = (flat(&question.embeds), vec![0, 3]);
                question
            });
            sound(&spec, &run(&spec, &tokens, keep), 16, keep);
        }
    }
}

/// Each image is pruned as if it were alone, and in whatever order; the published variants that
/// normalise or count over the batch are the documented exceptions.
#[test]
fn composition_of_the_batch_does_not_matter() {
    for spec in all() {
        if spec.contains("prumerge:c") || spec.contains("+:c") {
            continue;
        }
        let tokens = visual::<B>(3, 16, 5, 21);
        let together = run(&spec, &tokens, 4);
        for image in 0..3 {
            let alone = prune(
                &*build(&spec),
                &one(&tokens, image),
                4,
                &PruneContext { images: vec![(format!("s{image}"), 0)], ..ctx(0) },
            )
            .unwrap();
            let length = together.lengths[image];
            assert_eq!(alone.lengths, [length], "{spec}");
            let part =
                |x: &Tensor<B, 3>, at| values(&x.clone().narrow(0, at, 1).narrow(1, 0, length));
            let (all, own) = (part(&together.tokens, image), part(&alone.tokens, 0));
            for (x, y) in all.iter().zip(&own) {
                assert!((x - y).abs() <= 1e-5 * (1.0 + y.abs()), "{spec}: {x} and {y}");
            }
            if let (Some(all), Some(own)) = (&together.indices, &alone.indices) {
                assert_eq!(ints(&all.clone().narrow(0, image, 1)), ints(own), "{spec}");
            }
        }
        let again = run(&spec, &tokens, 4);
        assert_eq!(values(&again.tokens), values(&together.tokens), "{spec} repeats");
    }
}

fn one(tokens: &VisualTokens<B>, image: usize) -> VisualTokens<B> {
    let own = |x: Tensor<B, 3>| x.narrow(0, image, 1);
    let mut tokens = tokens.clone();
    tokens.projected = own(tokens.projected);
    tokens.features = tokens.features.map(|_, x| own(x));
    tokens.text = tokens.text.map(|text| text.select(&[image]));
    tokens.question = tokens.question.map(|mut question| {
        (question.embeds, question.lengths) = (own(question.embeds), vec![5]);
        question
    });
    tokens
}

/// What looks at tokens and not at their places follows them when they are shuffled.
#[test]
fn order_free_methods_follow_a_permutation() {
    let mut rng = SplitMix::new(&[31]);
    for spec in ["divprune", "cdpruner", "fastervlm", "dart"] {
        let tokens = visual::<B>(1, 16, 6, 5);
        let mut order: Vec<i64> = (0..16).collect();
        (0..16).for_each(|i| order.swap(i, i + rng.below(16 - i)));
        let index = Tensor::<B, 1, burn::tensor::Int>::from_ints(&order[..], &Default::default());
        let mut shuffled = tokens.clone();
        shuffled.projected = shuffled.projected.select(1, index.clone());
        shuffled.features = shuffled.features.map(|_, x| match x.dims()[1] {
            16 => x.select(1, index.clone()),
            _ => x,
        });
        let picks = ints(&run(spec, &tokens, 5).indices.unwrap());
        let moved = ints(&run(spec, &shuffled, 5).indices.unwrap());
        let mut back: Vec<i64> = moved.iter().map(|i| order[*i as usize]).collect();
        back.sort_unstable();
        assert_eq!(back, picks, "{spec}");
    }
}

#[test]
fn features_that_are_no_numbers_name_the_image() {
    for spec in all() {
        for bad in [f32::NAN, f32::INFINITY] {
            let mut tokens = visual::<B>(3, 16, 5, 2);
            let broken = Tensor::<B, 3>::full([1, 1, 1], bad, &Default::default());
            tokens.projected = tokens.projected.slice_assign([1..2, 3..4, 2..3], broken);
            let check = PruneContext { verify: true, ..ctx(3) };
            match select(&*build(&spec), &tokens, 4, &check) {
                Err(PruneError::NotFinite { sample, feature, .. }) => {
                    assert_eq!((&*sample, &*feature), ("s1", "projected"), "{spec}");
                }
                other => panic!("{spec}: {other:?}"),
            }
            // Unchecked, the other images are not spoilt.
            let Ok(kept) = prune(&*build(&spec), &tokens, 4, &ctx(3)) else { continue };
            if let (Some(found), "divprune" | "cdpruner" | "dart") = (kept.indices, spec.as_str()) {
                let clean = run(&spec, &visual(3, 16, 5, 2), 4).indices.unwrap();
                for image in [0, 2] {
                    let row = |x: &Tensor<B, 2, _>| ints(&x.clone().narrow(0, image, 1));
                    assert_eq!(row(&found), row(&clean), "{spec}");
                }
            }
        }
    }
}

#[test]
fn options_are_read_and_mistakes_named() {
    let refuse = |text: &str| {
        let spec: Result<PrunerSpec, _> = text.parse();
        let built = spec.and_then(|spec| Registry::<B>::builtin().build(&spec));
        built.map(|_| ()).unwrap_err().to_string()
    };
    let error = refuse("visionzip:contextal=3");
    assert!(error.contains("did you mean `contextual`?"), "{error}");
    assert!(refuse("visionzip:contextual=many").contains("whole number"));
    assert!(refuse("vispruner:important=1.5").contains("[0, 1]"));
    assert!(refuse("divprune:compat=official").contains("no official variant"));
    assert!(refuse("divprune:compat=officail").contains("sane or official"));
    assert!(refuse("random:seed=3").contains("it has none"));
    assert!(refuse("pyramiddrop:score=loud").contains("attention or uniform"));
    let text = "visionzip:compat=official:scope=image:contextual=3";
    let spec: PrunerSpec = text.parse().unwrap();
    assert_eq!(spec.to_string(), text);
}

#[test]
fn text_guided_pruners_ask_the_registrys_tower() {
    let names = ["cat", "hot dog"];
    let vectors =
        Tensor::<B, 2>::from_floats([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], &Default::default());
    let tower = NameTower::<B>::new(names, vectors).unwrap();
    assert_eq!(tower.mentioned("Is there a Cat?"), [0]);
    assert_eq!(tower.mentioned("cats and hot-dog"), [1]);
    assert_eq!(tower.mentioned("how many things"), [0, 1]);
    let features = tower.embed(&["a cat".into(), "what".into()]).unwrap();
    assert_eq!(features.lengths, [1, 2]);
    assert_eq!(values(&features.vectors)[3..6], [0.0; 3]);

    let registry = Registry::<B>::builtin()
        .with_text_tower(move || Ok(std::sync::Arc::new(tower.clone()) as _));
    let mut tokens = visual::<B>(1, 4, 3, 1);
    tokens.text = None;
    let patches = [[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.6, 0.0, 0.8]]];
    let hidden = [[[1.0], [2.0], [4.0], [10.0]]];
    tokens.features = VisionFeatures::new(Tensor::from_floats(hidden, &Default::default()))
        .with(PATCH_TEXT, Tensor::from_floats(patches, &Default::default()));
    let trim = registry.build(&PrunerSpec::new("trim")).unwrap();
    let ask = |prompt: &str| {
        let ctx = PruneContext { prompts: vec![prompt.into()], ..ctx(1) };
        values(&prune(&*trim, &tokens, 2, &ctx).unwrap().tokens)
    };
    assert_eq!(ask("is there a cat"), [4.0, 13.0 / 3.0]);
    assert_eq!(ask("is there a hot dog"), [2.0, 5.0]);
    // Without a tower and without given vectors: an error that says what is missing.
    let bare = Registry::<B>::builtin().build(&PrunerSpec::new("trim")).unwrap();
    let error = select(&*bare, &tokens, 2, &ctx(1)).unwrap_err();
    assert!(
        matches!(&error, PruneError::MissingFeature { feature, .. } if feature == TEXT),
        "{error}"
    );
}

#[test]
fn ranks_break_ties_by_index_and_put_nan_last() {
    let scores = [[1.0, f32::NAN, 2.0, 2.0, -0.0, 0.0]];
    let scores = Tensor::<B, 2>::from_floats(scores, &Default::default());
    let ranks = dualspeed_model::pruner::ranks(scores);
    assert_eq!(ints(&ranks), [2, 5, 0, 1, 3, 4]);
    let many = random::<B, 2>([3, 40], 1);
    let top = dualspeed_model::pruner::top_indices(many.clone(), 40);
    let sorted = values(&many.gather(1, top));
    assert!(sorted.chunks(40).all(|row| row.windows(2).all(|pair| pair[0] >= pair[1])));
}
