//! LLaVA-NeXT: geometry.

use dualspeed::data::Tiling;
use dualspeed::data::picture::tiling::best_resolution;
use dualspeed::model::import::LoadOptions;
use dualspeed::model::{
    GenerateOptions, NewlinePolicy, PositionPolicy, Slot, TileLayout, VisionInput,
};
use dualspeed::prelude::*;
use serde_json::Value;

use crate::support::{B, Expected, assert_close, fixture, ids, load_llava};

fn layout(tiling: &Tiling) -> TileLayout {
    let Tiling { side, grid, rows, columns } = tiling.clone();
    TileLayout { side, grid, rows, columns }
}

/// A case of the fixture: the images' tiles as visual tokens, their layouts, the prompt.
fn case(
    model: &Llava<B>,
    expected: &Expected,
    case: usize,
) -> (VisualTokens<B>, Vec<TileLayout>, Vec<i64>) {
    let facts = &expected.ints["cases"][case];
    let sizes: Vec<[usize; 2]> = serde_json::from_value(facts["sizes"].clone()).unwrap();
    let pinpoints = &model.config.anyres.as_ref().unwrap().image_grid_pinpoints;
    let tilings: Vec<Tiling> =
        sizes.iter().map(|size| Tiling::new(*size, pinpoints, 28, 4).unwrap()).collect();
    let counts: Vec<usize> = tilings.iter().map(Tiling::full_length).collect();
    assert_eq!(facts["counts"], serde_json::json!(counts));
    let tiles = (0..sizes.len()).map(|i| expected.tensor::<4>(&format!("pixel_values.{case}.{i}")));
    let pixels = VisionInput::Pixels(Tensor::cat(tiles.collect(), 0));
    let visual = model.encode(pixels, Needs::default()).unwrap();
    (visual, tilings.iter().map(layout).collect(), ids(&facts["input_ids"]))
}

#[test]
fn logits_and_text_are_those_of_transformers() {
    let model = load_llava("llava_next", &LoadOptions::default());
    let expected = Expected::of("llava_next");
    for index in 0..3 {
        let (visual, layouts, input_ids) = case(&model, &expected, index);
        let logits = model.logits(&input_ids, Some(&visual), &View::Full, None, &layouts).unwrap();
        let reference = expected.tensor::<2>(&format!("logits.{index}"));
        assert_close(&format!("next {index}"), logits, reference);
        let greedy = ids(&expected.ints["cases"][index]["greedy"]);
        let options =
            GenerateOptions { max_new_tokens: greedy.len(), layouts, ..GenerateOptions::default() };
        let found = model.generate(&input_ids, Some(&visual), &View::Full, None, &options).unwrap();
        assert_eq!(found, greedy);
    }
}

#[test]
fn pruned_tiles_take_the_same_way() {
    let mut model = load_llava("llava_next", &LoadOptions::default());
    let expected = Expected::of("llava_next");
    let (visual, layouts, input_ids) = case(&model, &expected, 2);
    let pruner = Registry::<B>::default().build(&PrunerSpec::default()).unwrap();
    let view = View::Pruned { keep: 5, isolator: false };
    let mut length = |newline, positions| {
        model.config.anyres.as_mut().unwrap().newline = newline;
        model.config.visual_positions = positions;
        let logits =
            model.logits(&input_ids, Some(&visual), &view, Some(&*pruner), &layouts).unwrap();
        let all: f32 = logits.clone().sum().into_scalar();
        assert!(all.is_finite());
        (logits.dims()[0], logits)
    };
    use {NewlinePolicy as N, PositionPolicy as P};
    let (none, _) = length(N::None, P::Renumbered);
    let (survivors, renumbered) = length(N::Survivors, P::Renumbered);
    let (all, _) = length(N::All, P::Renumbered);
    assert!(none < survivors && survivors <= all, "{none} {survivors} {all}");
    let rows: usize = layouts.iter().map(|layout| layout.rows.len()).sum();
    assert_eq!(all - none, rows);
    let (same, original) = length(N::Survivors, P::Original);
    assert_eq!(same, survivors);
    let apart: f32 = (original - renumbered).abs().max().into_scalar();
    assert!(apart > 1e-3, "positions make no difference: {apart}");
    // Layouts of other tiles are refused.
    let wrong = model.logits(&input_ids, Some(&visual), &View::Full, None, &layouts[..1]);
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
        let layout = layout(&tiling);
        let valid = layout.valid();
        let kept: Vec<usize> =
            (0..valid.len() * 576).filter(|token| valid[token / 576][token % 576]).collect();
        let slots = layout.arrange(&kept, NewlinePolicy::Survivors);
        let newlines = slots.iter().filter(|(slot, _)| *slot == Slot::Newline).count();
        assert_eq!(row["tokens"], slots.len(), "{size:?}");
        assert_eq!(row["newlines"], newlines, "{size:?}");
    }
}
