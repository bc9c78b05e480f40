//! `dualspeed train`: one model from a configuration, fresh, from an earlier run, or resumed.

use anyhow::Context;
use dualspeed_data::ExampleSource;
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::{MemoryPlan, Progress, TrainConfig, TrainJob, train};

use super::{Outcome, interrupt_flag};
use crate::cli::{Cli, TrainArgs};
use crate::extensions::{Extensions, registry, sources};
use crate::lab::Interrupted;
use crate::run;

pub fn run<B: AutodiffBackend, E: Extensions>(
    cli: &Cli,
    args: &TrainArgs,
    device: &B::Device,
) -> anyhow::Result<Outcome> {
    let dir = args.resume.as_ref().unwrap_or(&args.out);
    let mut config = match (&args.config, &args.resume) {
        (Some(path), _) => TrainConfig::load(path, &args.overrides)?,
        (None, Some(dir)) => {
            run::config(dir)?;
            TrainConfig::load(&dir.join("config.toml"), &args.overrides)?
        }
        (None, None) => anyhow::bail!("give --config FILE or --resume DIR"),
    };
    if let Some(earlier) = &args.init_from {
        // Absolute, so that the run can be resumed and loaded from anywhere.
        let found = std::fs::canonicalize(earlier);
        config.init_from =
            Some(found.with_context(|| format!("cannot find the run {}", earlier.display()))?);
    }
    run::adopt(&mut config)?;
    let model = run::start::<B>(&config, device)?;
    let sources = sources::<E>();
    let source = config.data.train.open(&config.model, config.seed, &sources)?;
    let valid = config.data.valid.as_ref();
    let valid = valid.map(|valid| valid.open(&config.model, config.seed, &sources)).transpose()?;
    if args.verify_data {
        verify("data.train", &*source)?;
        valid.as_ref().map_or(Ok(()), |valid| verify("data.valid", &**valid))?;
    }
    let n = config.model.vision.num_tokens();
    if !cli.quiet {
        eprintln!(
            "{} stage, {} samples, {} of {n} visual tokens in fast steps ({})",
            config.stage.name(),
            source.len(),
            config.keep_count(n),
            config.pruner().name
        );
        let cached = config.data.features.is_cached();
        eprintln!("memory: {}", MemoryPlan::new::<B>(&config, &*source, cached, device)?);
    }
    let outcome = train(TrainJob {
        valid,
        resume: args.resume.is_some(),
        overwrite: args.overwrite,
        progress: progress(cli, args),
        interrupt: interrupt_flag()?,
        pruners: registry::<B, E>(device),
        ..TrainJob::new(config, model, source, dir)
    })?;
    if outcome.interrupted {
        return Err(Interrupted { step: outcome.steps, run: dir.display().to_string() }.into());
    }
    println!(
        "{} steps, {:.1} s of training, written to {}",
        outcome.steps,
        outcome.train_seconds,
        dir.display()
    );
    Ok(Outcome::Done)
}

/// Names every example that cannot be used; the first few in full.
fn verify(what: &str, source: &dyn ExampleSource) -> anyhow::Result<()> {
    const SHOWN: usize = 20;
    let problems = source.verify();
    for problem in problems.iter().take(SHOWN) {
        eprintln!("{problem}");
    }
    let (bad, all) = (problems.len(), source.len());
    anyhow::ensure!(
        bad == 0,
        "{what}: {bad} of {all} examples cannot be used; correct or remove them"
    );
    Ok(())
}

#[cfg(feature = "tui")]
fn progress(cli: &Cli, args: &TrainArgs) -> Progress {
    match (cli.quiet, args.tui) {
        (true, _) => Progress::Silent,
        (false, true) => Progress::Tui,
        (false, false) => Progress::Bar,
    }
}

#[cfg(not(feature = "tui"))]
fn progress(cli: &Cli, _args: &TrainArgs) -> Progress {
    if cli.quiet { Progress::Silent } else { Progress::Bar }
}
