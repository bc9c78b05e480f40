//! The `dualspeed` command line: parsing, the choice of backend, exit codes, and the entry point that other crates
//! extend.

mod dispatch;
mod parser;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use crate::error_chain::error_chain;
use crate::extensions::Extensions;
use crate::interrupt;
use crate::output::{Stderr, note};
use dispatch::{Outcome, run};
use parser::Cli;

/// Runs the command line of this process with the pruners of `E` known by name, and returns the exit
/// code: 0 done, 1 failed, 2 wrong usage, 128 and the number of a signal after it has ended a training and its checkpoint is
/// written (130 SIGINT, 143 SIGTERM, 129 SIGHUP). Standard output or error that nobody takes change nothing of it, unless what
/// was to be printed was all that was asked for and could not be kept.
///
/// A crate with pruners of its own needs only
/// `fn main() -> std::process::ExitCode { dualspeed::cli::main_with::<MyPruners>() }`.
pub fn main_with<E: Extensions>() -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(|| Stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .init();
    match run::<E>(&mut Cli::parse()) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Interrupted) => ExitCode::from(interrupt::exit_code()),
        Err(error) => {
            note(format_args!("error: {}", error_chain(&error)));
            ExitCode::FAILURE
        }
    }
}
