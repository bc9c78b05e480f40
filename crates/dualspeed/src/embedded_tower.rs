//! The embedded vision tower: a small ViT that names patches, their colours and the picture, trained by
//! `dualspeed train-tower` on scenes from the embedded drawings.

use anyhow::Context;
use dualspeed_data::Atlas;
use dualspeed_model::vision::pretraining::{TowerConfig, TowerModel};
use dualspeed_model::{ClipVit, NameTower, VisionConfig, VitConfig, store};
use dualspeed_ops::Backend;

/// Optimiser steps of the embedded weights' training.
pub const STEPS: u64 = 1100;
/// Scenes per step of that training.
pub const BATCH_SIZE: usize = 128;
/// Peak learning rate of that training.
pub const LEARNING_RATE: f64 = 1e-3;

/// The weights (safetensors, 16-bit floats); made by `dualspeed train-tower --out crates/dualspeed/assets/tower.safetensors`.
pub const WEIGHTS: &[u8] = include_bytes!("../assets/tower.safetensors");

/// The configuration of the embedded weights' training.
pub fn training_config() -> dualspeed_train::TowerConfig {
    dualspeed_train::TowerConfig {
        steps: STEPS,
        batch: BATCH_SIZE,
        lr: LEARNING_RATE,
        ..Default::default()
    }
}

/// The configuration of the tower and its training heads.
pub fn config() -> TowerConfig {
    training_config().shape()
}

/// Loads the embedded tower with its training heads.
///
/// # Errors
/// If the embedded file does not fit [`config`], which a test rules out.
pub fn load_with_heads<B: Backend>(device: &B::Device) -> anyhow::Result<TowerModel<B>> {
    let model = config().init::<B>(device, 0)?;
    Ok(store::from_bytes::<B, _>(model, WEIGHTS, "the embedded vision tower")?)
}

/// Loads the embedded tower for a model whose `[model.vision]` is `wanted`.
///
/// # Errors
/// If `wanted` is another architecture: there are no weights for it.
pub fn load<B: Backend>(wanted: &VisionConfig, device: &B::Device) -> anyhow::Result<ClipVit<B>> {
    let wanted = wanted.vit().with_context(|| {
        format!(
            "there are no weights for the {} in [model.vision]: start from a checkpoint that has them (`dualspeed \
             assemble` makes one, `train --init-from` takes it)",
            wanted.kind()
        )
    })?;
    let embedded = VitConfig {
        mm_vision_select_layer: wanted.mm_vision_select_layer,
        mm_vision_select_feature: wanted.mm_vision_select_feature,
        ..config().vision
    };
    anyhow::ensure!(
        &embedded == wanted,
        "there are no weights for the vision tower in [model.vision]: the embedded one has hidden_size {}, \
         {} layers, {} px; leave the section out to use it",
        embedded.hidden_size,
        embedded.num_hidden_layers,
        embedded.image_size
    );
    let mut tower = load_with_heads::<B>(device)?.vision;
    tower.config = embedded;
    Ok(tower)
}

/// The text tower that belongs to the embedded vision tower: it knows the names of the classes of training.
///
/// # Errors
/// If the embedded files do not fit each other, which a test rules out.
pub fn text_tower<B: Backend>(device: &B::Device) -> anyhow::Result<NameTower<B>> {
    let classes = Atlas::embedded()?.classes().iter().take(config().num_classes);
    let vectors = load_with_heads::<B>(device)?.text_features();
    Ok(NameTower::new(classes.map(|class| class.name.clone()), vectors)?)
}
