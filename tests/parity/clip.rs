//! CLIP: the tower alone, and its projection into the space shared with text.

use dualspeed::model::VisionTower;
use dualspeed::model::clip_text::ClipText;
use dualspeed::model::import::{AnyModel, LoadOptions, open_weights, read_clip_text_config};
use dualspeed::prelude::*;

use crate::support::{B, Expected, assert_close, fixture, load};

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

#[test]
fn texts_in_the_space_shared_with_patches() {
    let expected = Expected::of("clip");
    let dir = fixture("clip");
    let config = read_clip_text_config(&dir.join("config.json")).unwrap();
    let source = open_weights(&dir).unwrap();
    let tower = ClipText::<B>::read(&config, source, None, &Default::default()).unwrap();
    let texts: Vec<Vec<i64>> = serde_json::from_value(expected.ints["input_ids"].clone()).unwrap();
    let reference = expected.tensor::<2>("text_embeds");
    let norm = reference.clone().powi_scalar(2).sum_dim(1).sqrt();
    let together = tower.embed(&texts).unwrap();
    assert_close("texts", together.clone(), reference / norm);
    // Padding reaches nothing: each text by itself, cut at its end, is the same.
    let alone = tower.embed(&[texts[0][..5].to_vec()]).unwrap();
    assert_close("one text", alone, together.narrow(0, 0, 1));
    assert!(tower.embed(&[vec![97; 17]]).is_err() && tower.embed(&[vec![1000]]).is_err());
}
