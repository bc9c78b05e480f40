//! Vision towers of several kinds behind one configuration and one module.

use dualspeed_model::config::{CustomVisionConfig, EfficientNetConfig, VisionConfig, VitConfig};
use dualspeed_model::vision::features::CLS_ATTENTION;
use dualspeed_model::{
    LlavaConfig, Needs, ParamGroup, ParamInfo, StepContext, Trainable, View, memory,
};

use crate::support::{A, Batch, config, device, gradients, random};

/// A small convolutional tower instead of the transformer: 4 tokens.
fn convolutional() -> LlavaConfig {
    LlavaConfig { vision: EfficientNetConfig { image_size: 32 }.into(), ..config() }
}

#[test]
fn configurations_without_a_kind_are_clips_and_say_so_when_written() {
    let json = serde_json::to_value(config().vision).unwrap();
    assert!(json["kind"] == "clip_vit" && json["patch_size"] == 4, "{json}");
    let old = r#"{ "hidden_size": 64, "num_attention_heads": 2 }"#;
    let read: VisionConfig = serde_json::from_str(old).unwrap();
    let expected = VitConfig { hidden_size: 64, num_attention_heads: 2, ..VitConfig::default() };
    assert_eq!(read, expected.into());
    let named: VisionConfig = serde_json::from_str(
        r#"{ "kind": "clip_vit", "hidden_size": 64, "num_attention_heads": 2 }"#,
    )
    .unwrap();
    assert_eq!(named, read);
}

#[test]
fn every_kind_survives_being_written_and_read() {
    let custom = CustomVisionConfig {
        kind: "patches".into(),
        image_size: 16,
        grid: 4,
        hidden_size: 5,
        normalisation: Some([[0.5; 3], [0.25; 3]]),
        options: serde_json::from_str(r#"{ "gain": 2 }"#).unwrap(),
    };
    for vision in [config().vision, convolutional().vision, custom.into()] {
        let text = serde_json::to_string(&vision).unwrap();
        assert_eq!(serde_json::from_str::<VisionConfig>(&text).unwrap(), vision, "{text}");
    }
    let text = serde_json::to_string(&convolutional().vision).unwrap();
    assert_eq!(text, r#"{"kind":"efficientnet_lite0","image_size":32}"#);
    for (text, parts) in [
        (r#"{ "kind": "resnet" }"#, ["resnet", "efficientnet_lite0"]),
        (r#"{ "kind": "clip_vitt", "patch_size": 3 }"#, ["clip_vitt", "clip_vit nor"]),
        (r#"{ "kind": "efficientnet_lite0", "hidden_size": 3 }"#, ["hidden_size", "image_size"]),
        (r#"{ "imagesize": 3 }"#, ["imagesize", "image_size"]),
    ] {
        let error = serde_json::from_str::<VisionConfig>(text).unwrap_err().to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    }
    let odd = LlavaConfig { vision: EfficientNetConfig { image_size: 40 }.into(), ..config() };
    assert!(odd.validate().unwrap_err().to_string().contains("image_size"));
}

#[test]
fn a_convolutional_tower_is_counted_named_frozen_and_asked() {
    let model = convolutional().init::<A>(&device::<A>(), 3).unwrap();
    let parameters = model.parameters().into_iter();
    let tower: Vec<_> = parameters
        .filter(|info| ParamGroup::of(&info.path) == Some(ParamGroup::VisionTower))
        .collect();
    let paths: Vec<_> = tower.iter().map(|info| info.path.as_str()).collect();
    for path in [
        "vision_tower.stem.weight",
        "vision_tower.blocks.0.depthwise.bias",
        "vision_tower.blocks.10.project.weight",
    ] {
        assert!(paths.contains(&path), "{path} is not in {paths:?}");
    }
    assert!(!paths.contains(&"vision_tower.blocks.0.expand.weight"), "block 0 expands nothing");
    let elements: usize = tower.iter().map(ParamInfo::num_elements).sum();
    assert_eq!(elements as u64, EfficientNetConfig::NUM_PARAMETERS);
    assert_eq!(memory::parameters(&model.config)[0], EfficientNetConfig::NUM_PARAMETERS);
    assert!(!model.trainable().vision_tower);

    // Stage 1: gradients reach the projector and nothing behind it.
    let model = model.with_trainable(Trainable::pretrain()).unwrap();
    let pixels = random::<A, 4>([1, 3, 32, 32], 8);
    let features = model.encode(pixels.clone(), &Needs::none()).unwrap();
    assert_eq!((features.len(), features.num_tokens()), (1, 4));
    let batch = Batch::new(vec![vec![1, -200, 5, 6]], vec![vec![-100, -100, 5, 6]]);
    let run = |model: &dualspeed_model::Llava<A>| {
        let features = model.encode(pixels.clone(), &Needs::none()).unwrap();
        let inputs = batch.inputs(Some(&features));
        let forward = model.forward(&inputs, &View::Full, None, &StepContext::default()).unwrap();
        gradients(model, &forward.hidden.sum())
    };
    let found = run(&model);
    assert!(found.contains_key("mm_projector.linear_1.weight"));
    assert!(found.keys().all(|path| path.starts_with("mm_projector.")), "{:?}", found.keys());
    let missing = features.missing(&Needs::of([CLS_ATTENTION]));
    assert_eq!(missing.as_deref(), Some(CLS_ATTENTION), "it has no class token");

    // Trained, every one of its parameters has a gradient.
    let trainable = Trainable { vision_tower: true, ..Trainable::nothing() };
    let found = run(&model.with_trainable(trainable).unwrap());
    assert_eq!(found.len(), tower.len());
    assert!(tower.iter().all(|info| found.contains_key(&info.path)));
}
