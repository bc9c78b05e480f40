//! One file per subcommand.

mod assemble;
mod assets;
mod bench;
mod eval;
mod export;
mod generate;
mod inspect;
pub mod prune;
mod quickstart;
mod train;
mod train_tower;

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::TrainError;

use crate::backend::BackendTask;
use crate::cli::{Cli, Command};
use crate::extensions::Extensions;
use crate::lab::Interrupted;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It did what was asked.
    Done,
    /// Ctrl-C; a checkpoint, or what there is of features on disk, is written.
    Interrupted,
}

/// Runs the chosen command on the chosen backend.
pub fn run<E: Extensions>(cli: &Cli) -> anyhow::Result<Outcome> {
    match cli.backend.run(cli.device, Dispatch::<E> { cli, extensions: PhantomData }) {
        Err(error) if interrupted(&error) => {
            eprintln!("{error}");
            Ok(Outcome::Interrupted)
        }
        other => other,
    }
}

fn interrupted(error: &anyhow::Error) -> bool {
    let featurising = |error| matches!(error, &TrainError::FeaturesInterrupted { .. });
    error.is::<Interrupted>() || error.downcast_ref().is_some_and(featurising)
}

struct Dispatch<'a, E> {
    cli: &'a Cli,
    extensions: PhantomData<E>,
}

impl<E: Extensions> BackendTask for Dispatch<'_, E> {
    type Output = anyhow::Result<Outcome>;

    fn run<B: AutodiffBackend>(self, device: &B::Device) -> Self::Output {
        let cli = self.cli;
        match &cli.command {
            Command::Quickstart(args) => quickstart::run::<B, E>(cli, args, device),
            Command::Train(args) => train::run::<B, E>(cli, args, device),
            Command::Eval(args) => eval::run::<B, E>(cli, args, device),
            Command::Generate(args) => generate::run::<B, E>(args, cli.quiet, device),
            Command::Inspect(args) => inspect::run(args),
            Command::Export(args) => export::run::<B>(args, device),
            Command::Assemble(args) => assemble::run::<B>(args, cli.quiet, device),
            Command::Assets(args) => assets::run(args, cli.quiet),
            Command::Prune(args) => prune::run::<B, E>(cli, args, device),
            Command::Bench(args) => bench::run::<B, E>(cli, args, device),
            Command::TrainTower(args) => train_tower::run::<B>(cli, args, device),
        }
    }
}

/// A flag that Ctrl-C sets; a second Ctrl-C ends the program at once.
fn interrupt_flag() -> anyhow::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    ctrlc::set_handler(move || {
        if set.swap(true, Ordering::SeqCst) {
            std::process::exit(i32::from(crate::cli::EXIT_INTERRUPTED));
        }
        eprintln!(
            "\nfinishing the step and writing a checkpoint; press Ctrl-C again to stop at once"
        );
    })
    .context("cannot listen for Ctrl-C")?;
    Ok(flag)
}

/// Refuses to replace a file unless told to.
fn refuse_existing(path: &std::path::Path, overwrite: bool) -> anyhow::Result<()> {
    anyhow::ensure!(
        overwrite || !path.exists(),
        "{} exists; give another --out, or --overwrite to replace it",
        path.display()
    );
    Ok(())
}
