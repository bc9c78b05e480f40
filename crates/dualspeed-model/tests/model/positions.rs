//! Rotary positions: by place on three axes, and those that tokens would have without pruning; in the prompt and after it.

use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor};
use dualspeed_model::config::{AnyresConfig, NewlinePolicy, PositionPolicy};
use dualspeed_model::language::DecoderOptions;
use dualspeed_model::layout::{ImageSlots, LayoutOptions, PaddedBatch, Positions, Source, lay_out};
use dualspeed_model::{
    DecoderConfig, GenerateOptions, Llava, LlavaConfig, Position, PrunerSpec, Registry,
    StepContext, Tiling, View,
};

use crate::support::{
    B, Batch, assert_close, config, device, encode, generate, images, inference, model, scrambled,
    values,
};

const IMG: i64 = -200;

/// A decoder whose heads turn one pair with time, one with rows, two with columns.
fn three_axes() -> LlavaConfig {
    let text = DecoderConfig {
        head_dim: Some(8),
        mrope_section: Some([1, 1, 2]),
        // Small, so that a position more or less is seen in every pair.
        rope_theta: 20.0,
        ..config().text
    };
    LlavaConfig { text, ..config() }
}

/// Rotary positions of one sample that begins with two tokens of text, an image of 4 x 4 tokens and more text.
fn laid_out(image: ImageSlots, positions: Positions, isolator_length: usize) -> Vec<[usize; 3]> {
    let (ids, labels) = ([vec![1, 2, IMG, 3, 4, IMG, 5]], [vec![-100; 7]]);
    let batch = dualspeed_model::TextBatch { input_ids: &ids, labels: &labels };
    let options =
        LayoutOptions { vocab_size: 9, isolator_length, positions, ..LayoutOptions::default() };
    let sequences = lay_out(batch, &[image.clone(), image], options).unwrap();
    sequences[0].slots.iter().map(|slot| slot.position.0).collect()
}

#[test]
fn image_tokens_stand_at_their_places_and_text_follows_the_largest() {
    let all: Vec<usize> = (0..16).collect();
    for kept in [all, vec![0, 6, 11], vec![5]] {
        for isolator in [0, 3] {
            let found = laid_out(ImageSlots::flat(0, &kept, 16, 4), Positions::Grid, isolator);
            let text = |position: usize| [position; 3];
            let first = 2 + isolator;
            let image = |start: usize| {
                kept.iter().map(move |token| [start, start + token / 4, start + token % 4])
            };
            // The largest position of a whole image is its last row's and column's, whatever is pruned.
            let after = first + 4;
            let second = after + 2 + isolator;
            let mut expected: Vec<[usize; 3]> = (0..first).map(text).collect();
            expected.extend(image(first));
            expected.extend((after..second).map(text));
            expected.extend(image(second));
            expected.push(text(second + 4));
            assert_eq!(found, expected, "{kept:?}");
        }
    }
    // Without pruning: one more than the largest on any axis.
    let whole =
        laid_out(ImageSlots::flat(0, &(0..16).collect::<Vec<_>>(), 16, 4), Positions::Grid, 0);
    let positions: Vec<Position> = whole[..18].iter().map(|position| Position(*position)).collect();
    assert_eq!(Position::after(&positions), Some(Position(whole[18])));
}

#[test]
fn pruned_tokens_may_keep_the_positions_they_had() {
    let kept = [0, 6, 11];
    let found = |positions| -> Vec<usize> {
        let image = ImageSlots::flat(0, &kept, 16, 4);
        let found = laid_out(image, positions, 1);
        assert!(found.iter().all(|[time, row, column]| time == row && row == column));
        found.into_iter().map(|[time, ..]| time).collect()
    };
    assert_eq!(found(Positions::Renumbered), (0..13).collect::<Vec<_>>());
    let original = [0, 1, 2, 3, 3 + 6, 3 + 11, 19, 20, 21, 22, 22 + 6, 22 + 11, 38];
    assert_eq!(found(Positions::Original), original);
    // Merged tokens stand nowhere: one after another, and the text where it would be without pruning.
    let merged = laid_out(ImageSlots::sequential(0, 3, 16), Positions::Original, 0);
    assert_eq!(merged[2..6], [[2; 3], [3; 3], [4; 3], [18; 3]]);
}

/// The forward of a decoder with three axes, put together by hand.
#[test]
fn a_forward_on_three_axes_turns_every_token_by_its_place() {
    let model = model::<B>(&three_axes());
    let (batch, features) = (Batch::mixed(), encode(&model, 3));
    let inputs = batch.inputs(Some(&features));
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let projected = model.mm_projector.forward(features.hidden());
    let isolator = model.mode_isolator.as_ref().map(|isolator| isolator.val()).unwrap();
    for view in [View::Full, View::Pruned { keep: 5, isolator: true }] {
        let forward = model.forward(&inputs, &view, Some(&*pruner), &inference()).unwrap();
        let selection = model.select(&inputs, &view, Some(&*pruner), &inference());
        let kept = selection.unwrap().unwrap().kept(16).unwrap();
        let (mut image, mut expected) = (0, Vec::new());
        for (ids, labels) in batch.input_ids.iter().zip(&batch.labels) {
            let (mut rows, mut positions, mut next, mut wanted) =
                (Vec::new(), Vec::new(), 0, Vec::new());
            for (id, label) in ids.iter().zip(labels) {
                if *label != -100 {
                    wanted.push(positions.len() - 1);
                }
                if *id != IMG {
                    let id = Tensor::<B, 1, Int>::from_ints([*id], &device::<B>());
                    rows.push(model.language_model.embed(id));
                    positions.push(Position([next; 3]));
                    next += 1;
                    continue;
                }
                if view.isolator() {
                    rows.push(isolator.clone());
                    positions.extend((next..next + 3).map(|at| Position([at; 3])));
                    next += 3;
                }
                for token in &kept[image] {
                    let row = projected.clone().narrow(0, image, 1).narrow(1, *token, 1);
                    rows.push(row.reshape([1, 16]));
                    positions.push(Position([next, next + token / 4, next + token % 4]));
                }
                next += 4;
                image += 1;
            }
            let options = DecoderOptions {
                wanted: Some(&wanted),
                positions: Some(&positions),
                ..DecoderOptions::default()
            };
            let embeds = Tensor::cat(rows, 0).unsqueeze::<3>();
            expected.extend(values(&model.language_model.forward(embeds, options)));
        }
        assert_close(&values(&forward.hidden), &expected, 1e-5);
    }

    // The axes matter where there is an image, and only there.
    let one_axis = LlavaConfig {
        text: DecoderConfig { mrope_section: None, ..three_axes().text },
        ..three_axes()
    };
    let plain = crate::support::model::<B>(&one_axis);
    let hidden = |model: &Llava<B>| {
        let forward = model.forward(&inputs, &View::Full, None, &inference()).unwrap();
        values(&forward.hidden)
    };
    let (three, one) = (hidden(&model), hidden(&plain));
    assert_ne!(three[..32], one[..32]);
    assert_eq!(three[32..64], one[32..64], "text has one position");
}

#[test]
fn sections_that_do_not_add_up_are_refused() {
    let text = DecoderConfig { mrope_section: Some([1, 1, 1]), ..three_axes().text };
    let error = LlavaConfig { text, ..three_axes() }.init::<B>(&device::<B>(), 1).unwrap_err();
    assert!(error.to_string().contains("text.mrope_section"), "{error}");
}

/// What a batch says about the positions that follow is what a longer batch has there.
#[test]
fn the_position_after_a_sequence_is_the_next_tokens() {
    let image = |kept: &[usize]| ImageSlots::flat(0, kept, 16, 4);
    for positions in [Positions::Renumbered, Positions::Original, Positions::Grid] {
        for (ids, kept) in [
            (vec![1, IMG, 2], vec![0, 6, 11]),
            (vec![1, IMG], vec![0, 6, 11]),
            (vec![1, IMG], vec![0, 1, 2]),
            (vec![1, IMG, IMG], vec![3, 12]),
            (vec![1, 2], Vec::new()),
        ] {
            let images: Vec<ImageSlots> =
                ids.iter().filter(|id| **id == IMG).map(|_| image(&kept)).collect();
            let options = LayoutOptions { vocab_size: 9, positions, ..LayoutOptions::default() };
            let sequence = |ids: Vec<i64>| {
                let (labels, ids) = ([vec![-100; ids.len()]], [ids]);
                let batch = dualspeed_model::TextBatch { input_ids: &ids, labels: &labels };
                lay_out(batch, &images, options).unwrap().remove(0)
            };
            let prompt = sequence(ids.clone());
            let longer = sequence([ids.clone(), vec![7]].concat());
            let last = longer.slots.last().unwrap();
            assert_eq!(last.source, Source::Text(7));
            let batch = PaddedBatch::new(vec![prompt], 0, false, 1);
            let next = batch.next_positions[0];
            assert_eq!(next, last.position, "{positions:?} {ids:?} {kept:?}");
        }
    }
}

/// Log-probabilities of tokens after a prompt, by one forward over all of it.
fn by_whole_forward(
    model: &Llava<B>,
    prompt: &[i64],
    generated: &[i64],
    (view, pruner): (&View, &str),
    tilings: &[Tiling],
    tiles: usize,
) -> Vec<Vec<f32>> {
    let mut batch = Batch::prompt(&[prompt, generated].concat());
    batch.labels[0][prompt.len()..].copy_from_slice(generated);
    let features = encode(model, 5);
    let features = images(&features, 0..tiles);
    let inputs = batch.tiled(Some(&features), tilings);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new(pruner)).unwrap();
    let ctx = StepContext::inference(0);
    let forward = model.forward(&inputs, view, Some(&*pruner), &ctx).unwrap();
    let logits = forward.hidden.matmul(model.lm_head_weight());
    values(&log_softmax(logits, 1)).chunks(23).map(<[f32]>::to_vec).collect()
}

/// Text generated token by token has the positions that it would have in one forward over prompt and text, whatever stands at the
/// end of the prompt.
#[test]
fn generation_continues_at_the_position_after_the_prompt() {
    let original = LlavaConfig {
        visual_positions: PositionPolicy::Original,
        text: DecoderConfig { rope_theta: 20.0, ..config().text },
        ..config()
    };
    let tiled = |config| LlavaConfig {
        anyres: Some(AnyresConfig { newline: NewlinePolicy::Survivors, ..Default::default() }),
        ..config
    };
    let tilings = [Tiling { side: 4, grid: [1, 2], rows: 0..3, columns: 0..8 }];
    let fast = View::Pruned { keep: 4, isolator: true };
    let bare = View::Pruned { keep: 3, isolator: false };
    let mut pruned_away = 0;
    for (config, tilings) in [
        (config(), &[][..]),
        (original.clone(), &[]),
        (three_axes(), &[]),
        (tiled(original), &tilings),
        (tiled(three_axes()), &tilings),
    ] {
        let model = scrambled(model::<B>(&config), "language_model.layers", 0.2);
        let tiles = if tilings.is_empty() { 1 } else { 3 };
        let features = images(&encode(&model, 5), 0..tiles);
        for (view, name) in [
            (View::Full, "none"),
            (fast, "divprune"),
            (bare, "random"),
            (fast, "visionzip"),
            (bare, "uniform"),
        ] {
            for prompt in [&[1, IMG, 4, 5][..], &[4, 1, IMG], &[IMG]] {
                let batch = Batch::prompt(prompt);
                let inputs = batch.tiled(Some(&features), tilings);
                let pruner = Registry::<B>::builtin().build(&PrunerSpec::new(name)).unwrap();
                let options = GenerateOptions { max_new_tokens: 5, ..GenerateOptions::default() };
                let found = generate(&model, &inputs, &view, Some(&*pruner), &options).unwrap();
                let asked = (&view, name);
                let whole = by_whole_forward(&model, prompt, &found.ids, asked, tilings, tiles);
                assert_eq!(found.ids.len(), 5);
                for ((id, log_prob), row) in found.ids.iter().zip(&found.log_probs).zip(&whole) {
                    let expected = row[*id as usize];
                    assert!(
                        (*log_prob as f32 - expected).abs() < 1e-4,
                        "{prompt:?}, {name}, {:?}: {log_prob} and {expected}",
                        config.visual_positions
                    );
                }
                pruned_away += usize::from(name != "none");
            }
        }
    }
    assert_eq!(pruned_away, 5 * 4 * 3);
}

/// The test above can fail: one position more or less is seen.
#[test]
fn a_wrong_position_would_be_seen() {
    let config =
        LlavaConfig { text: DecoderConfig { rope_theta: 20.0, ..config().text }, ..config() };
    let model = scrambled(model::<B>(&config), "language_model.layers", 0.2);
    let embeds = crate::support::random::<B, 3>([1, 6, 16], 3);
    let last = |position: usize| {
        let positions: Vec<Position> =
            (0..5).chain([position]).map(|at| Position([at; 3])).collect();
        let options = DecoderOptions {
            wanted: Some(&[5]),
            positions: Some(&positions),
            ..DecoderOptions::default()
        };
        let hidden = model.language_model.forward(embeds.clone(), options);
        values(&log_softmax(hidden.matmul(model.lm_head_weight()), 1))
    };
    let (right, wrong) = (last(5), last(6));
    let apart = right.iter().zip(&wrong).fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    assert!(apart > 1e-3, "{apart}");
}
