//! `dualspeed train-tower`: the small vision tower, from scenes made on the fly.

use dualspeed_ops::AutodiffBackend;
use dualspeed_train::train_tower;

use super::{Outcome, refuse_existing};
use crate::cli::{Cli, TrainTowerArgs};
use crate::tower;

pub fn run<B: AutodiffBackend>(
    cli: &Cli,
    args: &TrainTowerArgs,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    refuse_existing(&args.out, args.overwrite)?;
    let config = dualspeed_train::TowerConfig {
        seed: args.seed,
        steps: args.steps,
        batch: args.batch_size,
        lr: args.lr,
        ..tower::training()
    };
    let outcome = train_tower::<B>(&config, device, Some(&args.out), !cli.quiet)?;
    let share = |value: f64| format!("{:.1} %", 100.0 * value);
    println!(
        "{} steps in {:.0} s; validation scenes: patches {}, object patches {}, classes by the class token {}, \
         object patches by the text head {}; written to {}",
        outcome.valid.step,
        outcome.valid.seconds,
        share(outcome.valid.patch_accuracy),
        share(outcome.valid.object_accuracy),
        share(outcome.valid.cls_accuracy),
        share(outcome.valid.text_accuracy),
        args.out.display()
    );
    Ok(Outcome::Done)
}
