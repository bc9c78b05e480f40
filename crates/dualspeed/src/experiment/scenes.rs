//! Test scenes that belong to a configuration's training scenes.

use anyhow::Context;
use dualspeed_data::{SceneConfig, SceneSource, Split, Vendor};
use dualspeed_train::TrainConfig;

/// The vendor whose drawings no model sees in training.
pub const HELD_OUT_VENDOR: Vendor = Vendor::Fluent;

/// The description of the scenes that `config` trains on.
///
/// # Errors
/// If the data is not made of scenes.
pub fn scene_config(config: &TrainConfig) -> anyhow::Result<SceneConfig> {
    config.data.train.scene_config().context(
        "this command composes its own test set and needs `data.train.scenes`, not `llava_json`",
    )
}

/// `samples` test scenes like the training scenes of `config`, with drawings and layouts of the test split.
///
/// # Errors
/// If the data is not made of scenes.
pub fn test_source(config: &TrainConfig, samples: usize) -> anyhow::Result<SceneSource> {
    let scenes = SceneConfig { split: Split::Test, ..scene_config(config)? };
    Ok(config.data.train.open_scenes(scenes, samples, &config.model)?)
}

/// `samples` test scenes like the training scenes of `config`, in drawings of [`HELD_OUT_VENDOR`].
///
/// # Errors
/// If the data is not made of scenes.
pub fn held_out_source(config: &TrainConfig, samples: usize) -> anyhow::Result<SceneSource> {
    let vendors = vec![HELD_OUT_VENDOR];
    let scenes = SceneConfig { split: Split::Test, vendors, ..scene_config(config)? };
    Ok(config.data.train.open_scenes(scenes, samples, &config.model)?)
}
