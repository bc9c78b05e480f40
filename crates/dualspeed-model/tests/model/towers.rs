//! Vision towers of several kinds behind one configuration and one module.

use dualspeed_model::efficientnet::num_parameters;
use dualspeed_model::{
    EfficientNetConfig, LlavaConfig, Needs, ParamGroup, StepContext, TextBatch, Trainable, View,
    VisionConfig, VisionInput, VitConfig, memory,
};

use crate::support::{A, config, device, random};

/// A small convolutional tower instead of the transformer: 4 tokens.
fn convolutional() -> LlavaConfig {
    LlavaConfig { vision: EfficientNetConfig { image_size: 32 }.into(), ..config() }
}

#[test]
fn configurations_from_before_there_were_kinds_read_the_same() {
    let json = serde_json::to_value(config().vision).unwrap();
    assert!(json.get("kind").is_none() && json["patch_size"] == 4, "{json}");
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
    for vision in [config().vision, convolutional().vision] {
        let text = serde_json::to_string(&vision).unwrap();
        assert_eq!(serde_json::from_str::<VisionConfig>(&text).unwrap(), vision, "{text}");
    }
    let text = serde_json::to_string(&convolutional().vision).unwrap();
    assert_eq!(text, r#"{"kind":"efficientnet_lite0","image_size":32}"#);
    for (text, parts) in [
        (r#"{ "kind": "resnet" }"#, ["resnet", "efficientnet_lite0"]),
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
    let tower: Vec<_> = model
        .param_groups()
        .into_iter()
        .filter(|info| info.group == ParamGroup::VisionTower)
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
    let elements: usize = tower.iter().map(dualspeed_model::ParamInfo::num_elements).sum();
    assert_eq!(elements as u64, num_parameters());
    assert_eq!(memory::parameters(&model.config)[0], num_parameters());
    assert!(tower.iter().all(|info| !info.trainable));

    // Stage 1: gradients reach the projector and nothing behind it.
    let model = model.with_trainable(Trainable::pretrain()).unwrap();
    let pixels = VisionInput::Pixels(random::<A, 4>([1, 3, 32, 32], 8));
    let visual = model.encode(pixels, Needs::default()).unwrap();
    assert_eq!((visual.images(), visual.tokens()), (1, 4));
    let (ids, labels) = (vec![vec![1, -200, 5, 6]], vec![vec![-100, -100, 5, 6]]);
    let batch = TextBatch { input_ids: &ids, labels: &labels };
    let ctx = StepContext::default();
    let forward = model.forward(batch, Some(&visual), &View::Full, None, &ctx).unwrap();
    let grads = forward.hidden.sum().backward();
    assert!(model.mm_projector.linear_1.weight.val().grad(&grads).is_some());
    let missing = visual.features.missing(Needs { cls_attention: true, ..Needs::default() });
    assert_eq!(missing, Some("cls_attention"), "it has no class token");
}
