//! EfficientNet-Lite0, where its weights have been fetched.

use dualspeed::model::VisionTower;
use dualspeed::model::import::pickle::PickleWeights;
use dualspeed::model::import::read_efficientnet;
use dualspeed::prelude::*;

use crate::support::{B, Expected, asset};

#[test]
fn features_of_block_ten() {
    let Some(path) = asset("efficientnet-lite0") else { return };
    let weights = PickleWeights::open(&path).unwrap();
    let tower = read_efficientnet::<B>(&weights, 96, &Default::default()).unwrap();
    let expected = Expected::of("efficientnet");
    let found = tower.features(expected.tensor("pixel_values"), &Needs::none()).hidden();
    let reference = expected.tensor::<3>("features");
    assert_eq!(found.dims(), [2, 36, 112]);
    assert_eq!((tower.geometry().num_tokens, tower.geometry().hidden_size), (36, 112));
    let difference = (found - reference.clone()).abs().max().into_scalar();
    let scale = reference.abs().max().into_scalar();
    println!("largest difference {difference:.2e} of values up to {scale:.2}");
    assert!(difference / scale < 1e-3, "{difference} of {scale}");
}
