//! `dualspeed train-tower`: the small vision tower, from scenes made on the fly.

use std::path::PathBuf;

use clap::Args;
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::train_tower;

use super::global_args::GlobalArgs;
use super::overwrite::refuse_existing;
use crate::embedded_tower;
use crate::output::say;

/// Arguments of `train-tower`.
#[derive(Debug, Args)]
pub(crate) struct TrainTowerArgs {
    /// The weights file to write (safetensors).
    #[arg(long)]
    out: PathBuf,
    /// Optimiser steps.
    #[arg(long, default_value_t = embedded_tower::STEPS)]
    steps: u64,
    /// Scenes per step.
    #[arg(long, default_value_t = embedded_tower::BATCH_SIZE)]
    batch_size: usize,
    /// Peak learning rate (warm-up and cosine).
    #[arg(long, default_value_t = embedded_tower::LEARNING_RATE)]
    lr: f64,
    /// The seed of weights and scenes.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace the file if it exists.
    #[arg(long)]
    overwrite: bool,
}

pub(crate) fn run<B: AutodiffBackend>(
    args: &TrainTowerArgs,
    global: &GlobalArgs,
    device: &B::Device,
) -> anyhow::Result<()> {
    refuse_existing(&args.out, args.overwrite)?;
    let config = dualspeed_train::TowerConfig {
        seed: args.seed,
        steps: args.steps,
        batch: args.batch_size,
        lr: args.lr,
        ..embedded_tower::training_config()
    };
    let outcome = train_tower::<B>(&config, device, Some(&args.out), !global.quiet)?;
    let share = |value: f64| format!("{:.1} %", 100.0 * value);
    say(format_args!(
        "{} steps in {:.0} s; validation scenes: patches {}, object patches {}, classes by the class token {}, \
         object patches by the text head {}; written to {}",
        outcome.valid.step,
        outcome.valid.seconds,
        share(outcome.valid.patch_accuracy),
        share(outcome.valid.object_accuracy),
        share(outcome.valid.cls_accuracy),
        share(outcome.valid.text_accuracy),
        args.out.display()
    ));
    Ok(())
}
