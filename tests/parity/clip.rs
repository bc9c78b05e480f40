//! CLIP: the tower alone, and its projection into the space shared with text.

use dualspeed::model::VisionTower;
use dualspeed::model::import::{AnyModel, LoadOptions};
use dualspeed::prelude::*;

use crate::support::{Expected, assert_close, load};

#[test]
fn the_tower_alone() {
    let expected = Expected::of("clip_vision");
    let AnyModel::Clip(tower) = load("clip_vision", &LoadOptions::default()) else {
        panic!("no tower");
    };
    assert!(tower.visual_projection.is_none());
    let needs = Needs { cls_attention: true, ..Needs::default() };
    let features = tower.features(expected.tensor("pixel_values"), needs);
    let n = features.hidden.dims()[1];
    assert_close("hidden", features.hidden, expected.tensor::<3>("hidden").narrow(1, 1, n));
    let attention = expected.tensor::<3>("cls_attention").narrow(2, 1, n);
    assert_close("class attention", features.cls_attention.unwrap(), attention);
}

#[test]
fn patches_in_the_space_shared_with_text() {
    let expected = Expected::of("clip");
    let AnyModel::Clip(tower) = load("clip", &LoadOptions::default()) else { panic!("no tower") };
    let needs = Needs { patch_text: true, ..Needs::default() };
    let features = tower.features(expected.tensor("pixel_values"), needs);
    assert_close("patches", features.patch_text.unwrap(), expected.tensor::<3>("patch_text"));
}
