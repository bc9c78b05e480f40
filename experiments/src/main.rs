//! Ablations of DualSpeed. One file per table or figure of the paper; each arm is a line or two of
//! overrides on the quickstart's recipe; reports are made from the files that runs wrote.
//!
//! `cargo run --release -p experiments -- list | run NAME [--seeds N] [--scale smoke] | report`

mod report;
mod run;
mod scale;
mod studies;
mod study;

use std::path::PathBuf;

use clap::{Parser, Subcommand};
use dualspeed::backend::BackendChoice;
use dualspeed::output::say;

use run::StudyRun;
use scale::Scale;

/// Ablations of DualSpeed.
#[derive(Debug, Parser)]
#[command(name = "experiments", version)]
struct Cli {
    /// Where runs and reports are.
    #[arg(long, global = true, default_value = "runs/experiments")]
    out: PathBuf,
    /// The backend to compute on.
    #[arg(long, global = true, value_enum, default_value_t = BackendChoice::default())]
    backend: BackendChoice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the studies.
    List,
    /// Run a study's arms; finished runs are kept and skipped.
    Run {
        /// The study.
        name: String,
        /// Seeds per arm.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=100))]
        seeds: u64,
        /// How large the runs are.
        #[arg(long, value_enum, default_value_t = Scale::Smoke)]
        scale: Scale,
        /// Further overrides for every arm (repeatable).
        #[arg(long = "set", value_name = "KEY=VALUE")]
        overrides: Vec<String>,
    },
    /// Write report.md, report.html and plots for every study that has runs.
    Report,
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    match cli.command {
        Command::List => {
            for study in studies::STUDIES {
                say(format_args!(
                    "{:<16} {} ({} arms)",
                    study.name,
                    study.question,
                    study.arms.len()
                ));
                say(format_args!("{:<16} {}", "", study.source));
            }
            Ok(())
        }
        Command::Run { name, seeds, scale, overrides } => {
            let study = studies::find(&name)?;
            let run = StudyRun { study, out: &cli.out, seeds, scale, overrides: &overrides };
            cli.backend.run(0, run)?;
            report::write(&cli.out)
        }
        Command::Report => report::write(&cli.out),
    }
}
