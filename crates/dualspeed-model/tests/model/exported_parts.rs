//! A vision tower of another crate in an exported checkpoint: read back where that crate is, refused by name where it is not.

use burn::tensor::Tensor;
use dualspeed_model::config::{LlavaConfig, ProjectorType};
use dualspeed_model::export::names::Layout;
use dualspeed_model::export::{ExportOptions, Tokens, export_merged};
use dualspeed_model::import::{AnyModel, Checkpoint, LoadOptions};
use dualspeed_model::{Llava, Needs, VisionTower};

use crate::custom_parts::{custom, model, parts};
use crate::fixtures::{B, values};

#[test]
fn a_tower_of_another_crate_comes_back() {
    let config = LlavaConfig { mm_projector_type: ProjectorType::Mlp2xGelu, ..custom() };
    let model: Llava<B> = model(&config);
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens { image: 9, bos: Some(1), eos: 2, pad: 0 };
    let options = ExportOptions::new(tokens);
    export_merged(&model, dir.path(), Layout::Transformers, &options).unwrap();
    let error =
        export_merged(&model, &dir.path().join("x"), Layout::Original, &options).unwrap_err();
    assert!(error.to_string().contains("hf format"), "{error}");

    let options = LoadOptions::default();
    let checkpoint = Checkpoint::open(dir.path(), &options).unwrap();
    let (again, _) = checkpoint.load_with::<B>(&parts(), &options, &Default::default()).unwrap();
    let AnyModel::Llava(again) = again else { panic!("it sees") };
    assert_eq!(again.config.vision, model.config.vision);
    let pixels =
        Tensor::<B, 1, burn::tensor::Int>::arange(0..3 * 16 * 16, &Default::default()).float();
    let pixels = (pixels.reshape([1, 3, 16, 16]) / 50.0).sin();
    let features = |model: &Llava<B>| {
        values(&model.vision_tower.features(pixels.clone(), &Needs::none()).hidden())
    };
    assert_eq!(features(&again), features(&model));

    let error = checkpoint.load::<B>(&options, &Default::default()).unwrap_err().to_string();
    assert!(error.contains("patches"), "{error}");
}
