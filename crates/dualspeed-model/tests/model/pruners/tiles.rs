//! Padding and tiles: counts, places, gradients, and what is refused.

use dualspeed_model::{
    PruneContext, PruneError, PrunerSpec, Registry, Tiles, View, VisualTokens, select,
};

use super::base::{ctx, ints, visual};
use crate::support::{A, B, Batch, config, encode, model, values};

fn tiled(per_image: Vec<usize>, valid: Option<Vec<Vec<bool>>>) -> VisualTokens<B> {
    let mut tokens = visual::<B>(per_image.iter().sum(), 16, 5, 3);
    let images = per_image.len();
    tokens.text = tokens.text.map(|text| text.select(&(0..images).collect::<Vec<_>>()));
    tokens.question = tokens.question.map(|mut question| {
        question.embeds = question.embeds.narrow(0, 0, images);
        question.lengths.truncate(images);
        question
    });
    tokens.tiles = Some(Tiles { per_image, valid });
    tokens
}

/// Rows 0..8 of a tile of 16 are valid.
fn half() -> Vec<bool> {
    (0..16).map(|token| token < 8).collect()
}

#[test]
fn every_image_gets_its_tiles_share() {
    let valid = vec![vec![true; 16], half(), vec![true; 16], vec![false; 16]];
    let tokens = tiled(vec![1, 3], Some(valid));
    for name in ["divprune", "cdpruner", "random", "visionzip", "trim", "holov:scope=image"] {
        let spec: PrunerSpec = name.parse().unwrap();
        let pruner = Registry::<B>::builtin().build(&spec).unwrap();
        let kept = select(&*pruner, &tokens, 5, &ctx(2)).unwrap();
        // 5 of 16; 5 * 8 / 16 = 2, 5 and 0 of the second image's tiles.
        assert_eq!(kept.lengths, [5, 7], "{name}");
        assert_eq!(kept.tokens.dims(), [2, 7, 5], "{name}");
        kept.verify(name, 48).unwrap();
        let Some(indices) = &kept.indices else { continue };
        let picks = ints(indices);
        let (first, second) = (&picks[..5], &picks[7..]);
        assert!(first.iter().all(|pick| (0..16).contains(pick)), "{name}: {first:?}");
        if name.contains("image") {
            assert!(second.iter().all(|pick| (0..8).contains(pick) || (16..32).contains(pick)));
        } else {
            assert!(second[..2].iter().all(|pick| (0..8).contains(pick)), "{name}: {second:?}");
            assert!(second[2..].iter().all(|pick| (16..32).contains(pick)), "{name}: {second:?}");
        }
    }
}

#[test]
fn random_picks_differ_between_tiles_of_one_image() {
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("random")).unwrap();
    let kept = select(&*pruner, &tiled(vec![2], None), 5, &ctx(1)).unwrap();
    let picks = ints(&kept.indices.unwrap());
    let second: Vec<i64> = picks[5..].iter().map(|pick| pick - 16).collect();
    assert_ne!(picks[..5], second);
}

#[test]
fn a_single_valid_token_is_kept_in_the_space_of_the_others() {
    let valid = vec![vec![true; 16], (0..16).map(|token| token == 6).collect()];
    let tokens = tiled(vec![2], Some(valid));
    for (name, unprojected) in [("divprune", false), ("visionzip", true)] {
        let pruner = Registry::<B>::builtin().build(&PrunerSpec::new(name)).unwrap();
        let kept = select(&*pruner, &tokens, 4, &ctx(1)).unwrap();
        assert_eq!((kept.lengths.clone(), kept.unprojected), (vec![5], unprojected));
        let source = if unprojected { &tokens.features.hidden } else { &tokens.projected };
        let last = values(&kept.tokens.narrow(1, 4, 1));
        assert_eq!(last, values(&source.clone().narrow(0, 1, 1).narrow(1, 6, 1)), "{name}");
    }
}

#[test]
fn masks_that_do_not_fit_and_grids_are_refused() {
    let divprune = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let refuse = |tokens: &VisualTokens<B>, images: usize| {
        select(&*divprune, tokens, 4, &ctx(images)).unwrap_err().to_string()
    };
    assert!(refuse(&tiled(vec![1, 2], Some(vec![half()])), 2).contains("1 of 3 rows"));
    let mut tokens = tiled(vec![2], None);
    tokens.tiles = Some(Tiles { per_image: vec![3], valid: None });
    assert!(refuse(&tokens, 1).contains("3 tiles"));
    tokens.tiles = Some(Tiles { per_image: vec![2], valid: Some(vec![vec![false; 16]; 2]) });
    assert!(refuse(&tokens, 1).contains("no valid token"));
    let pool = Registry::<B>::builtin().build(&PrunerSpec::new("avgpool2d")).unwrap();
    let error = select(&*pool, &tiled(vec![2], None), 4, &ctx(1)).unwrap_err();
    assert!(matches!(error, PruneError::NotAGrid { .. }), "{error}");
}

/// Ragged counts and tiles reach the decoder: per-image lengths in the splice, padding never.
#[test]
fn tiles_and_adaptive_counts_go_through_the_model() {
    let (model, batch) = (model::<B>(&config()), Batch::mixed());
    let full = |valid: bool| {
        let mut visual = encode(&model, 4);
        let mask = vec![vec![true; 16], half(), vec![true; 16], half()];
        visual.tiles = Some(Tiles { per_image: vec![1, 2, 1], valid: valid.then_some(mask) });
        let forward =
            model.forward(batch.text(), Some(&visual), &View::Full, None, &batch.ctx()).unwrap();
        (forward.visual_tokens, values(&forward.hidden))
    };
    assert_eq!(full(false).0, 64);
    let (tokens, hidden) = full(true);
    assert_eq!(tokens, 48);
    assert!(hidden.iter().all(|x| x.is_finite()));

    let visual = encode(&model, 3);
    let spec: PrunerSpec = "prumerge:adaptive=true".parse().unwrap();
    let pruner = Registry::<B>::builtin().build(&spec).unwrap();
    let view = View::Pruned { keep: 4, isolator: true };
    let ctx = batch.ctx();
    let kept =
        model.prune(batch.text(), Some(&visual), &view, Some(&*pruner), &ctx).unwrap().unwrap();
    let forward = model.forward_kept(batch.text(), Some(&kept), &view, &ctx).unwrap();
    assert_eq!(forward.visual_tokens, kept.lengths.iter().sum::<usize>());
    assert_eq!(forward.lengths[0], 5 + 3 + kept.lengths[0]);
}

#[test]
fn gradients_reach_merged_and_tiled_tokens() {
    let mut tokens = visual::<A>(3, 16, 5, 3);
    tokens.tiles = Some(Tiles { per_image: vec![1, 2], valid: None });
    tokens.text = tokens.text.map(|text| text.select(&[0, 1]));
    tokens.projected = tokens.projected.require_grad();
    tokens.features.hidden = tokens.features.hidden.require_grad();
    for (name, merges) in [("divprune", false), ("visionzip", true), ("trim", true)] {
        let pruner = Registry::<A>::builtin().build(&PrunerSpec::new(name)).unwrap();
        let kept = select(&*pruner, &tokens, 4, &PruneContext { ..ctx(2) }).unwrap();
        assert_eq!(kept.lengths, [4, 8], "{name}");
        let real = kept.tokens.clone().narrow(0, 0, 1).narrow(1, 0, 4).sum()
            + kept.tokens.narrow(0, 1, 1).sum();
        let grads = real.backward();
        let source = if merges { &tokens.features.hidden } else { &tokens.projected };
        let grad = values(&source.grad(&grads).unwrap());
        // Assembled rows are used once each: the gradient of a sum is the sum of the weights.
        let total: f32 = grad.chunks(5).map(|row| row[0]).sum();
        assert!((total - 12.0).abs() < 1e-3, "{name}: {total}");
    }
}
