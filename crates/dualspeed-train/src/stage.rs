//! What each stage trains.

use dualspeed_model::{Llava, Trainable};
use dualspeed_ops::Backend;

use crate::config::{Stage, TrainConfig};
use crate::error::TrainError;

impl Stage {
    /// The parts of the model that take gradients: stage 1 projector and isolator; stage 2 also the
    /// adapters where the model has them, else the decoder; from scratch everything but the tower.
    pub fn trainable(self, has_lora: bool) -> Trainable {
        match self {
            Stage::Pretrain => Trainable::pretrain(),
            Stage::Finetune if has_lora => Trainable::finetune_lora(),
            Stage::Finetune | Stage::Single => Trainable::full(),
        }
    }
}

/// Freezes and thaws the parts of `model` as the config's stage asks.
///
/// # Errors
/// `TrainError::Model` when the stage and the model do not fit.
pub fn apply_stage<B: Backend>(
    model: Llava<B>,
    config: &TrainConfig,
) -> Result<Llava<B>, TrainError> {
    let has_lora = model.lora.is_some();
    Ok(model.with_trainable(config.stage.trainable(has_lora))?)
}
