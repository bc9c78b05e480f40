//! LLaVA-NeXT: geometry.

use dualspeed::data::Tiling;
use dualspeed::data::anyres::best_resolution;
use dualspeed::model::{NewlinePolicy, Slot, TileLayout};
use serde_json::Value;

use crate::support::fixture;

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
        assert_eq!(row["tokens"], tiling.tokens(), "{size:?}");
        let layout = TileLayout {
            side: tiling.side,
            grid: tiling.grid,
            rows: tiling.rows.clone(),
            columns: tiling.columns.clone(),
        };
        let valid = layout.valid();
        let kept: Vec<usize> =
            (0..valid.len() * 576).filter(|token| valid[token / 576][token % 576]).collect();
        let slots = layout.arrange(&kept, NewlinePolicy::Survivors);
        let newlines = slots.iter().filter(|(slot, _)| *slot == Slot::Newline).count();
        assert_eq!(row["tokens"], slots.len(), "{size:?}");
        assert_eq!(row["newlines"], newlines, "{size:?}");
    }
}
