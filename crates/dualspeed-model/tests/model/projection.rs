//! Selected tokens are projected by themselves: that changes what the backward pass runs over, not what comes out.

use std::collections::BTreeMap;

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_model::config::{AnyresConfig, NewlinePolicy, PositionPolicy};
use dualspeed_model::language::DecoderOptions;
use dualspeed_model::layout::{ImageSlots, LayoutOptions, PaddedBatch, Positions, lay_out};
use dualspeed_model::{
    DualSpeedObjective, Inputs, Llava, LlavaConfig, PrunerSpec, Registry, Selection, StepContext,
    Tiling, Trainable, View,
};

use crate::support::{
    A, Batch, assert_close, config, device, encode, gradients, losses, model, values,
};

/// The hidden states of a view where everything is projected and the kept tokens are gathered afterwards, put together piece by
/// piece: `[supervised, d]`.
fn projected_whole(
    model: &Llava<A>,
    inputs: &Inputs<'_, A>,
    selection: &Selection<A>,
) -> Tensor<A, 2> {
    let (config, longest) = (&model.config, selection.longest());
    let kept = selection.kept(16).unwrap();
    let newline = config.anyres.as_ref().map(|anyres| anyres.newline);
    let slots = |(image, kept): (usize, &Vec<usize>)| match inputs.tilings.get(image) {
        Some(tiling) => {
            ImageSlots::tiled(image * longest, kept, tiling, newline.unwrap_or_default())
        }
        None => ImageSlots::flat(image * longest, kept, 16, 4),
    };
    let images: Vec<ImageSlots> = kept.iter().enumerate().map(slots).collect();
    let options = LayoutOptions {
        vocab_size: 23,
        isolator_length: config.isolator_length,
        max_length: None,
        positions: match config.visual_positions {
            PositionPolicy::Renumbered => Positions::Renumbered,
            PositionPolicy::Original => Positions::Original,
        },
    };
    let sequences = lay_out(inputs.text, &images, options).unwrap();
    let table = images.len() * longest;
    let batch = PaddedBatch::new(sequences, table, model.image_newline.is_some(), 1);

    let features = inputs.features.as_ref().unwrap();
    let all = model.mm_projector.forward(features.hidden()); // [tiles, n, d]
    let visual = selection.apply_to(all).reshape([table, 16]);
    let ids = Tensor::<A, 1, Int>::from_ints(&batch.text_ids[..], &device::<A>());
    let newline = model.image_newline.as_ref().map(|newline| newline.val().unsqueeze::<2>());
    let isolator = model.mode_isolator.as_ref().map(|isolator| isolator.val());
    let parts = [Some(model.language_model.embed(ids)), Some(visual), newline, isolator];
    let gather = TensorData::new(batch.gather.clone(), [batch.gather.len()]);
    let embeds = Tensor::cat(parts.into_iter().flatten().collect(), 0)
        .select(0, Tensor::from_data(gather, &device::<A>()))
        .reshape([batch.samples(), batch.seq, 16]);
    let options = DecoderOptions {
        wanted: Some(&batch.supervised),
        positions: batch.positions.as_deref(),
        ..DecoderOptions::default()
    };
    model.language_model.forward(embeds, options)
}

/// Flat images, and images of several tiles with padding.
#[test]
fn selected_tokens_are_projected_by_themselves() {
    let tiling = |grid, rows, columns| Tiling { side: 4, grid, rows, columns };
    let tilings =
        vec![tiling([1, 2], 0..4, 1..7), tiling([2, 1], 0..8, 0..4), tiling([1, 1], 1..3, 0..4)];
    let tiled = |newline| LlavaConfig {
        anyres: Some(AnyresConfig { newline, ..AnyresConfig::default() }),
        ..config()
    };
    let original = |config| LlavaConfig { visual_positions: PositionPolicy::Original, ..config };
    for (config, tilings) in [
        (config(), &[][..]),
        (original(config()), &[]),
        (tiled(NewlinePolicy::Survivors), &tilings),
        (tiled(NewlinePolicy::None), &tilings),
        (original(tiled(NewlinePolicy::All)), &tilings),
    ] {
        let model = model::<A>(&config).with_trainable(Trainable::pretrain()).unwrap();
        let batch = Batch::mixed();
        let features = encode(&model, if tilings.is_empty() { 3 } else { 8 });
        let inputs = batch.tiled(Some(&features), tilings);
        let view = View::Pruned { keep: 4, isolator: true };
        let ctx = StepContext::training(1, 0);
        for name in ["divprune", "fastervlm", "random"] {
            let pruner = Registry::<A>::builtin().build(&PrunerSpec::new(name)).unwrap();
            let forward = model.forward(&inputs, &view, Some(&*pruner), &ctx).unwrap();
            let selection = model.select(&inputs, &view, Some(&*pruner), &ctx).unwrap().unwrap();
            let mut whole = forward.clone();
            whole.hidden = projected_whole(&model, &inputs, &selection);
            assert_close(&values(&forward.hidden), &values(&whole.hidden), 1e-5);

            let found = [&forward, &whole].map(|forward| {
                let losses = losses(&model, forward, None, DualSpeedObjective::default()).unwrap();
                let loss = losses.loss(losses.tokens).unwrap();
                let mut found: BTreeMap<_, _> = gradients(&model, &loss);
                found.insert("loss".into(), values(&loss));
                found
            });
            let projector =
                ["linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias"];
            for part in projector {
                let gradient = &found[0][&format!("mm_projector.{part}")];
                assert!(gradient.iter().any(|x| x.abs() > 1e-3), "{name}: {part} learns something");
            }
            let uses_newline = config.anyres.as_ref().map(|anyres| anyres.newline);
            let newline = found[0].get("image_newline");
            assert_eq!(
                newline.is_some_and(|gradient| gradient.iter().any(|x| *x != 0.0)),
                uses_newline.is_some_and(|policy| policy != NewlinePolicy::None)
            );
            let paths = found.each_ref().map(|found| found.keys().collect::<Vec<_>>());
            assert_eq!(paths[0], paths[1]);
            found[0].iter().for_each(|(path, kept)| assert_close(kept, &found[1][path], 1e-5));
        }
    }
}
