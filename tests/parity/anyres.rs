//! LLaVA-NeXT: geometry.

use dualspeed::data::Tiling;
use dualspeed::data::picture::tiling::best_resolution;
use dualspeed::model::import::LoadOptions;
use dualspeed::model::layout::{ImageSlots, Source};
use dualspeed::model::{NewlinePolicy, PositionPolicy};
use dualspeed::prelude::*;
use serde_json::Value;

use crate::support::{B, Expected, Prompt, assert_close, fixture, ids, load_llava};

/// A case of the fixture: the prompt over its images' tiles, and how those lie.
fn case(model: &Llava<B>, expected: &Expected, case: usize) -> (Prompt, Vec<Tiling>) {
    let facts = &expected.ints["cases"][case];
    let sizes: Vec<[usize; 2]> = serde_json::from_value(facts["sizes"].clone()).unwrap();
    let pinpoints = &model.config.anyres.as_ref().unwrap().image_grid_pinpoints;
    let tilings: Vec<Tiling> =
        sizes.iter().map(|size| Tiling::new(*size, pinpoints, 28, 4).unwrap()).collect();
    let counts: Vec<usize> = tilings.iter().map(Tiling::full_length).collect();
    assert_eq!(facts["counts"], serde_json::json!(counts));
    let tiles = (0..sizes.len()).map(|i| expected.tensor::<4>(&format!("pixel_values.{case}.{i}")));
    let pixels = Tensor::cat(tiles.collect(), 0);
    let features = model.encode(pixels, &Needs::none()).unwrap();
    let prompt = Prompt::new(&ids(&facts["input_ids"]), Some(&features));
    (prompt.tiled(&tilings), tilings)
}

#[test]
fn logits_and_text_are_those_of_transformers() {
    let model = load_llava("llava_next", &LoadOptions::default());
    let expected = Expected::of("llava_next");
    for index in 0..3 {
        let (prompt, _) = case(&model, &expected, index);
        let reference = expected.tensor::<2>(&format!("logits.{index}"));
        assert_close(&format!("next {index}"), prompt.logits(&model), reference);
        let greedy = ids(&expected.ints["cases"][index]["greedy"]);
        assert_eq!(prompt.greedy(&model, greedy.len()), greedy);
    }
}

#[test]
fn pruned_tiles_take_the_same_way() {
    let mut model = load_llava("llava_next", &LoadOptions::default());
    let expected = Expected::of("llava_next");
    let (prompt, tilings) = case(&model, &expected, 2);
    let pruner = Registry::<B>::default().build(&PrunerSpec::default()).unwrap();
    let view = View::Pruned { keep: 5, isolator: false };
    let mut length = |newline, positions| {
        model.config.anyres.as_mut().unwrap().newline = newline;
        model.config.visual_positions = positions;
        let logits = prompt.logits_of(&model, &view, Some(&*pruner)).unwrap();
        let all: f32 = logits.clone().sum().into_scalar();
        assert!(all.is_finite());
        (logits.dims()[0], logits)
    };
    use {NewlinePolicy as N, PositionPolicy as P};
    let (none, _) = length(N::None, P::Renumbered);
    let (survivors, renumbered) = length(N::Survivors, P::Renumbered);
    let (all, _) = length(N::All, P::Renumbered);
    assert!(none < survivors && survivors <= all, "{none} {survivors} {all}");
    let rows: usize = tilings.iter().map(|tiling| tiling.rows.len()).sum();
    assert_eq!(all - none, rows);
    let (same, original) = length(N::Survivors, P::Original);
    assert_eq!(same, survivors);
    let apart: f32 = (original - renumbered).abs().max().into_scalar();
    assert!(apart > 1e-3, "positions make no difference: {apart}");
    // Tilings of other tiles are refused.
    let wrong = prompt.tiled(&tilings[..1]).logits_of(&model, &View::Full, None);
    assert!(wrong.err().unwrap().to_string().contains("tiles"));
}

#[test]
fn counts_are_those_of_transformers_for_forty_aspect_ratios() {
    let text = std::fs::read(fixture("anyres.json")).unwrap();
    let json: Value = serde_json::from_slice(&text).unwrap();
    let pinpoints: Vec<[usize; 2]> = serde_json::from_value(json["pinpoints"].clone()).unwrap();
    let rows = json["rows"].as_array().unwrap();
    assert!(rows.len() >= 30);
    for row in rows {
        let size: [usize; 2] = serde_json::from_value(row["size"].clone()).unwrap();
        let best: [usize; 2] = serde_json::from_value(row["best"].clone()).unwrap();
        assert_eq!(best_resolution(size, &pinpoints), Some(best), "{size:?}");
        let tiling = Tiling::new(size, &pinpoints, 336, 24).unwrap();
        assert_eq!(row["tiles"], tiling.tiles(), "{size:?}");
        assert_eq!(row["tokens"], tiling.full_length(), "{size:?}");
        let valid = tiling.valid();
        let kept: Vec<usize> =
            (0..valid.len() * 576).filter(|token| valid[token / 576][token % 576]).collect();
        let slots = ImageSlots::tiled(0, &kept, &tiling, NewlinePolicy::Survivors).tokens;
        let newlines = slots.iter().filter(|slot| slot.source == Source::Newline).count();
        assert_eq!(row["tokens"], slots.len(), "{size:?}");
        assert_eq!(row["newlines"], newlines, "{size:?}");
    }
}
