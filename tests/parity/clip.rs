//! CLIP: the tower alone, and its projection into the space shared with text.

use dualspeed::model::VisionTower;
use dualspeed::model::import::{
    AnyModel, LoadOptions, open_weights, read_clip_text, read_clip_text_config,
};
use dualspeed::model::vision::features::{CLS_ATTENTION, PATCH_TEXT};
use dualspeed::prelude::*;

use crate::support::{B, Expected, assert_close, fixture, load};

#[test]
fn the_tower_alone() {
    let expected = Expected::of("clip_vision");
    let AnyModel::Clip(tower) = load("clip_vision", &LoadOptions::default()) else {
        panic!("no tower");
    };
    assert!(tower.visual_projection.is_none());
    let features = tower.features(expected.tensor("pixel_values"), &Needs::of([CLS_ATTENTION]));
    let n = features.num_tokens();
    assert_close("hidden", features.hidden(), expected.tensor::<3>("hidden").narrow(1, 1, n));
    // The reference has `[images, heads, 1 + n]`.
    let attention = expected.tensor::<3>("cls_attention").narrow(2, 1, n).swap_dims(1, 2);
    assert_close("class attention", features.get(CLS_ATTENTION).unwrap(), attention);
    assert!(features.get(PATCH_TEXT).is_none(), "nobody asked for it");
}

#[test]
fn patches_in_the_space_shared_with_text() {
    let expected = Expected::of("clip");
    let AnyModel::Clip(tower) = load("clip", &LoadOptions::default()) else { panic!("no tower") };
    let features = tower.features(expected.tensor("pixel_values"), &Needs::of([PATCH_TEXT]));
    let found = features.get(PATCH_TEXT).unwrap();
    assert_close("patches", found, expected.tensor::<3>("patch_text"));
}

#[test]
fn texts_in_the_space_shared_with_patches() {
    let expected = Expected::of("clip");
    let dir = fixture("clip");
    let config = read_clip_text_config(&dir.join("config.json")).unwrap();
    let source = open_weights(&dir).unwrap();
    let tower = read_clip_text::<B>(&config, source, None, &Default::default()).unwrap();
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
