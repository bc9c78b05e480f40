//! Padding and tiles: counts, places, gradients, and what is refused.

use dualspeed_model::config::{AnyresConfig, NewlinePolicy};
use dualspeed_model::vision::features::HIDDEN;
use dualspeed_model::{
    LlavaConfig, ModelError, PruneContext, PruneError, PrunerSpec, Registry, Tiles, Tiling, View,
    VisualTokens, select,
};

use super::base::{ctx, ints, visual};
use crate::support::{A, B, Batch, config, encode, inference, model, prune, values};

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
        let kept = prune(&*pruner, &tokens, 5, &ctx(2)).unwrap();
        // 5 of 16; 5 * 8 / 16 = 2, 5 and 0 of the second image's tiles.
        assert_eq!(kept.lengths, [5, 7], "{name}");
        assert_eq!(kept.tokens.dims(), [2, 7, 5], "{name}");
        kept.selection.verify(name, 16).unwrap();
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
    let kept = prune(&*pruner, &tiled(vec![2], None), 5, &ctx(1)).unwrap();
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
        let kept = prune(&*pruner, &tokens, 4, &ctx(1)).unwrap();
        assert_eq!((kept.lengths.clone(), kept.unprojected), (vec![5], unprojected));
        let source = if unprojected { tokens.features.hidden() } else { tokens.projected.clone() };
        let last = values(&kept.tokens.narrow(1, 4, 1));
        assert_eq!(last, values(&source.narrow(0, 1, 1).narrow(1, 6, 1)), "{name}");
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

/// A grid of tiles of 4 x 4 tokens; without any, the image is its first tile.
fn tiling(
    grid: [usize; 2],
    rows: std::ops::Range<usize>,
    columns: std::ops::Range<usize>,
) -> Tiling {
    Tiling { side: 4, grid, rows, columns }
}

/// Ragged counts and tiles reach the decoder: per-image lengths in the layout, padding never.
#[test]
fn tiles_and_adaptive_counts_go_through_the_model() {
    let batch = Batch::mixed();
    let any = |newline| {
        let anyres = Some(AnyresConfig { newline, ..AnyresConfig::default() });
        model::<B>(&LlavaConfig { anyres, ..config() })
    };
    let whole =
        [tiling([0, 0], 0..0, 0..0), tiling([1, 1], 0..4, 0..4), tiling([1, 1], 0..4, 0..4)];
    // The second image has padding below, the third at its sides.
    let padded =
        [tiling([0, 0], 0..0, 0..0), tiling([1, 1], 0..2, 0..4), tiling([1, 1], 0..4, 1..3)];
    let full = |newline, tilings: &[Tiling]| {
        let model = any(newline);
        let features = encode(&model, 5);
        let inputs = batch.tiled(Some(&features), tilings);
        let forward = model.forward(&inputs, &View::Full, None, &inference()).unwrap();
        assert!(values(&forward.hidden).iter().all(|x| x.is_finite()));
        (forward.visual_tokens, forward.lengths)
    };
    assert_eq!(full(NewlinePolicy::None, &whole), (80, vec![5 + 16, 4, 6 + 64]));
    assert_eq!(full(NewlinePolicy::None, &padded), (64, vec![5 + 16, 4, 6 + 48]));
    assert_eq!(full(NewlinePolicy::All, &padded), (70, vec![5 + 16, 4, 6 + 54]));

    // What shows only padding is seen by nobody.
    let model = any(NewlinePolicy::All);
    let features = encode(&model, 5);
    let run = |features: &dualspeed_model::VisionFeatures<B>| {
        let inputs = batch.tiled(Some(features), &padded);
        values(&model.forward(&inputs, &View::Full, None, &inference()).unwrap().hidden)
    };
    let hidden = features.hidden();
    let other = hidden.clone().narrow(0, 2, 1).narrow(1, 8, 8).add_scalar(7.0);
    let moved = hidden.clone().slice_assign([2..3, 8..16, 0..16], other);
    assert_eq!(run(&features.clone().with(HIDDEN, moved)), run(&features));
    let seen = hidden.clone().narrow(0, 2, 1).narrow(1, 7, 1).add_scalar(7.0);
    let moved = hidden.slice_assign([2..3, 7..8, 0..16], seen);
    assert_ne!(run(&features.clone().with(HIDDEN, moved)), run(&features));

    let model = crate::support::model::<B>(&config());
    let features = encode(&model, 3);
    let spec: PrunerSpec = "prumerge:adaptive=true".parse().unwrap();
    let pruner = Registry::<B>::builtin().build(&spec).unwrap();
    let view = View::Pruned { keep: 4, isolator: true };
    let (inputs, ctx) = (batch.inputs(Some(&features)), inference());
    let selection = model.select(&inputs, &view, Some(&*pruner), &ctx).unwrap().unwrap();
    let forward = model.run(&inputs, Some(&selection), &view, &ctx, None).unwrap();
    assert_eq!(forward.visual_tokens, selection.lengths().iter().sum::<usize>());
    assert_eq!(forward.lengths[0], 5 + 3 + selection.lengths()[0]);
    let again = model.forward(&inputs, &view, Some(&*pruner), &ctx).unwrap();
    assert_eq!(values(&again.hidden), values(&forward.hidden));
}

#[test]
fn tilings_that_do_not_fit_the_model_are_refused() {
    let batch = Batch::mixed();
    let flat = model::<B>(&config());
    let features = encode(&flat, 5);
    let good = [tiling([0, 0], 0..0, 0..0), tiling([1, 1], 0..4, 0..4), tiling([1, 1], 0..4, 0..4)];
    let refuse = |model: &dualspeed_model::Llava<B>, tilings: &[Tiling]| {
        let inputs = batch.tiled(Some(&features), tilings);
        match model.forward(&inputs, &View::Full, None, &inference()) {
            Err(ModelError::Tiles { tiles, expected, .. }) => (tiles, expected),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(refuse(&flat, &good), (5, 5), "a model without a newline takes no tiles");
    let anyres = LlavaConfig { anyres: Some(AnyresConfig::default()), ..config() };
    let model = model::<B>(&anyres);
    assert_eq!(refuse(&model, &good[..2]), (5, 3));
    let outside = [good[0].clone(), good[1].clone(), tiling([1, 1], 0..5, 0..4)];
    assert_eq!(refuse(&model, &outside), (5, 5));
    let coarse = [good[0].clone(), good[1].clone(), Tiling { side: 2, ..good[2].clone() }];
    assert_eq!(refuse(&model, &coarse), (5, 5));
}

#[test]
fn gradients_reach_merged_and_tiled_tokens() {
    let mut tokens = visual::<A>(3, 16, 5, 3);
    tokens.tiles = Some(Tiles { per_image: vec![1, 2], valid: None });
    tokens.text = tokens.text.map(|text| text.select(&[0, 1]));
    tokens.projected = tokens.projected.require_grad();
    let hidden = tokens.features.hidden().require_grad();
    tokens.features = tokens.features.with(HIDDEN, hidden.clone());
    for (name, merges) in [("divprune", false), ("visionzip", true), ("trim", true)] {
        let pruner = Registry::<A>::builtin().build(&PrunerSpec::new(name)).unwrap();
        let kept = prune(&*pruner, &tokens, 4, &PruneContext { ..ctx(2) }).unwrap();
        assert_eq!(kept.lengths, [4, 8], "{name}");
        let real = kept.tokens.clone().narrow(0, 0, 1).narrow(1, 0, 4).sum()
            + kept.tokens.narrow(0, 1, 1).sum();
        let grads = real.backward();
        let source = if merges { &hidden } else { &tokens.projected };
        let grad = values(&source.grad(&grads).unwrap());
        // Assembled rows are used once each: the gradient of a sum is the sum of the weights.
        let total: f32 = grad.chunks(5).map(|row| row[0]).sum();
        assert!((total - 12.0).abs() < 1e-3, "{name}: {total}");
    }
}
