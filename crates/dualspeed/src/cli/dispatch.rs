//! The command of a parsed command line, on the backend of its `--backend`.

use std::marker::PhantomData;

use dualspeed_ops::AutodiffBackend;
use dualspeed_train::TrainError;

use super::parser::{Cli, Command};
use crate::backend::{BackendChoice, BackendTask};
use crate::commands::{
    assemble, assets, bench, data, eval, export, generate, inspect, prune, quickstart, train,
    train_tower,
};
use crate::extensions::{Extensions, parts};
use crate::interrupt::Interrupted;
use crate::output::{NoReader, note};

/// How a command ended that did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It did what was asked.
    Done,
    /// A signal; a checkpoint, or what there is of features on disk, is written.
    Interrupted,
}

/// Runs the command of `cli` on its backend, with the pruners of `E`.
pub(super) fn run<E: Extensions>(cli: &mut Cli) -> anyhow::Result<Outcome> {
    let asked = cli.global.backend;
    cli.global.backend = asked.resolve(cli.global.device);
    let (cli, global) = (&*cli, &cli.global);
    let computes = !matches!(cli.command, Command::Inspect(_) | Command::Assets(_));
    // One line, and only where there was something to choose.
    if asked != global.backend
        && BackendChoice::compiled_in().count() > 1
        && computes
        && !global.quiet
    {
        let name = global.backend.name();
        note(format_args!("backend: {name} (--backend takes another)"));
    }
    match global.backend.run(global.device, Dispatch::<E> { cli, extensions: PhantomData }) {
        Ok(()) => Ok(Outcome::Done),
        // `| head`: it has what it wanted.
        Err(error) if error.is::<NoReader>() => Ok(Outcome::Done),
        Err(error) if is_interruption(&error) => {
            note(format_args!("{error}"));
            Ok(Outcome::Interrupted)
        }
        Err(error) => Err(error),
    }
}

fn is_interruption(error: &anyhow::Error) -> bool {
    let of_features = |error| {
        use TrainError::{CheckInterrupted, FeaturesInterrupted};
        matches!(error, &(FeaturesInterrupted { .. } | CheckInterrupted { .. }))
    };
    error.is::<Interrupted>() || error.downcast_ref().is_some_and(of_features)
}

struct Dispatch<'a, E> {
    cli: &'a Cli,
    extensions: PhantomData<E>,
}

impl<E: Extensions> BackendTask for Dispatch<'_, E> {
    type Output = anyhow::Result<()>;

    fn run<B: AutodiffBackend>(self, device: &B::Device) -> Self::Output {
        let Cli { global, command } = self.cli;
        let parts = parts::<B, E>();
        match command {
            Command::Quickstart(args) => quickstart::run::<B, E>(args, global, device),
            Command::Train(args) => train::run::<B, E>(args, global, device),
            Command::Eval(args) => eval::run::<B, E>(args, global, device),
            Command::Data(args) => data::run::<B, E>(args, global, device),
            Command::Generate(args) => {
                generate::run::<B::InnerBackend, E>(args, global, &parts, device)
            }
            Command::Inspect(args) => inspect::run(args, global),
            Command::Export(args) => {
                export::run::<B::InnerBackend, E>(args, global, &parts, device)
            }
            Command::Assemble(args) => assemble::run::<B::InnerBackend>(args, global, device),
            Command::Assets(args) => assets::run(args, global),
            Command::Prune(args) => prune::run::<B::InnerBackend, E>(args, global, &parts, device),
            Command::Bench(args) => bench::run::<B, E>(args, global, device),
            Command::TrainTower(args) => train_tower::run::<B>(args, global, device),
        }
    }
}
