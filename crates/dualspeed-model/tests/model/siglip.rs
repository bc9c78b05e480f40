//! SigLIP's tower alone and in a LLaVA, against transformers.

use burn::tensor::Tensor;
use dualspeed_model::config::{SelectFeature, VitConfig, VitFamily};
use dualspeed_model::export::names::Layout;
use dualspeed_model::export::{ExportOptions, Tokens, export_merged};
use dualspeed_model::import::{AnyModel, LoadOptions, parse_config};
use dualspeed_model::vision::features::{
    CLS_ATTENTION, CLS_HIDDEN, KEYS, LAST_CLS_ATTENTION, LAST_KEYS, PATCH_TEXT,
};
use dualspeed_model::{
    Llava, Needs, PruneContext, PrunerSpec, Registry, VisionTower, VisualTokens, select,
};
use serde_json::json;

use crate::decoder_families::check_llava;
use crate::fixtures::{B, assert_close, expected, load, load_llava, parity, values};

/// Largest difference of features.
const FEATURES: f32 = 1e-4;

#[test]
fn the_tower_gives_transformers_features_and_received_attention() {
    let (floats, ints) = expected("siglip_vision");
    let AnyModel::Clip(mut tower) = load::<B>(&parity("siglip_vision"), &LoadOptions::default())
    else {
        panic!("no tower");
    };
    // The pooling head in the file is no part of it, and 30 pixels are four patches of 7.
    assert_eq!((tower.config.family, tower.config.num_tokens()), (VitFamily::Siglip, 16));
    assert_eq!(tower.geometry().normalisation, Some([[0.5; 3]; 2]));
    let needs = [CLS_ATTENTION, KEYS, PATCH_TEXT, CLS_HIDDEN, LAST_CLS_ATTENTION, LAST_KEYS];
    for layer in [-1, -2] {
        assert!(ints["layers"].as_array().unwrap().contains(&json!(layer)));
        tower.config.mm_vision_select_layer = layer;
        let pixels: Tensor<B, 4> = floats.tensor("pixel_values");
        let features = tower.features(pixels, &Needs::of(needs));
        let hidden = floats.values(&format!("hidden.{layer}"));
        assert_close("hidden", &values(&features.hidden()), &hidden, FEATURES);
        let received = features.get(CLS_ATTENTION).unwrap();
        assert_eq!(received.dims(), [2, 16, 4]);
        let reference = floats.values(&format!("received_attention.{layer}"));
        assert_close("received attention", &values(&received), &reference, 1e-5);
        // Each patch gives one away.
        let all: f32 = values(&received.sum_dim(1)).iter().sum();
        assert!((all - 8.0).abs() < 1e-4, "{all}");
        assert!(features.get(KEYS).is_some());
        for absent in [PATCH_TEXT, CLS_HIDDEN, LAST_CLS_ATTENTION, LAST_KEYS] {
            assert!(features.get(absent).is_none(), "{absent}");
        }
    }
}

#[test]
fn a_llava_over_it_gives_transformers_logits_and_text_and_goes_there_and_back() {
    let model = load_llava::<B>(&parity("llava_siglip"), &LoadOptions::default());
    check_llava("llava_siglip", &model);
    let dir = tempfile::tempdir().unwrap();
    let tokens = Tokens { image: 90, bos: Some(1), eos: 2, pad: 0 };
    let options = ExportOptions { shard: 1 << 30, ..ExportOptions::new(tokens) };
    export_merged(&model, dir.path(), Layout::Transformers, &options).unwrap();
    let again: Llava<B> = load_llava(dir.path(), &LoadOptions::default());
    assert_eq!(again.config.vision, model.config.vision);
    check_llava("llava_siglip", &again);
}

#[test]
fn what_transformers_would_cut_off_it_is_refused() {
    let config = std::fs::read(parity("llava_siglip").join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    for changes in [
        json!({ "vision_feature_select_strategy": "default" }),
        json!({ "vision_feature_select_strategy": null }),
    ] {
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        let text = serde_json::to_vec(&config).unwrap();
        let error = parse_config("config.json".as_ref(), &text).unwrap_err().to_string();
        assert!(error.contains("class token") && error.contains("full"), "{error}");
    }
    let wrong = VitConfig {
        mm_vision_select_feature: SelectFeature::ClsPatch,
        ..VitConfig::siglip_so400m_14_384()
    };
    assert!(wrong.validate().unwrap_err().to_string().contains("no class token"));
    assert_eq!(VitConfig::siglip_so400m_14_384().num_tokens(), 729);
}

/// The pruners that go by the class token's attention find a score here.
#[test]
fn attention_guided_pruners_go_by_the_received_attention() {
    let (floats, _) = expected("siglip_vision");
    let model = load_llava::<B>(&parity("llava_siglip"), &LoadOptions::default());
    let pixels: Tensor<B, 4> = floats.tensor("pixel_values");
    let features = model.encode(pixels, &Needs::of([CLS_ATTENTION, KEYS])).unwrap();
    let tokens = VisualTokens::new(features.hidden(), features.clone());
    let ctx = PruneContext {
        images: vec![("a".into(), 0), ("b".into(), 0)],
        verify: true,
        ..PruneContext::default()
    };
    for name in ["fastervlm", "visionzip", "vispruner", "prunesid", "holov", "prumerge+"] {
        let pruner = Registry::<B>::builtin().build(&PrunerSpec::new(name)).unwrap();
        let selection =
            select(&*pruner, &tokens, 5, &ctx).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(selection.lengths(), [5, 5], "{name}");
    }
    // The best five of the mean over heads.
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("fastervlm")).unwrap();
    let picks = select(&*pruner, &tokens, 5, &ctx).unwrap().picks(16).unwrap();
    let picks: Vec<usize> = picks.into_data().iter::<i64>().map(|pick| pick as usize).collect();
    let received = values(&features.get(CLS_ATTENTION).unwrap().mean_dim(2));
    for (image, picks) in picks.chunks(5).enumerate() {
        let scores = &received[16 * image..][..16];
        let mut best: Vec<usize> = (0..16).collect();
        best.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
        best.truncate(5);
        best.sort_unstable();
        assert_eq!(picks, best, "image {image}");
    }
}
