//! `dualspeed train`: one model from a configuration, fresh, from an earlier run, or resumed.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use dualspeed_data::check::CheckOptions;
use dualspeed_data::{ExampleSource, OnError, SequenceLimits};
use dualspeed_model::import::LoadOptions;
use dualspeed_model::require_dtype;
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::config::{SourceConfig, read_toml};
use dualspeed_train::{
    CONFIG_FILE, ConfigError, MemoryPlan, Progress, SampleCheck, TrainConfig, TrainJob,
    sequence_limits, train,
};

use super::checkpoint_args::PutArgs;
use super::data::{check_source, report_text};
use super::global_args::GlobalArgs;
use crate::extensions::{Extensions, doors, parts, registry, sources};
use crate::hub;
use crate::interrupt::{Interrupted, Training, interrupt_flag};
use crate::output::{note, say};
use crate::run_dir;

/// Arguments of `train`.
#[derive(Debug, Args)]
pub(crate) struct TrainArgs {
    /// The configuration; see `quickstart --print-config` for one.
    #[arg(long, required_unless_present = "resume")]
    config: Option<PathBuf>,
    /// Override a key, e.g. `--set optim.lr=1e-3` (repeatable).
    #[arg(long = "set", value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// The run directory to make.
    #[arg(long, default_value = "runs/train")]
    out: PathBuf,
    /// Replace the run directory if it exists.
    #[arg(long, conflicts_with = "resume")]
    overwrite: bool,
    /// Continue the run in DIR at the step it stopped at.
    #[arg(long, value_name = "DIR")]
    resume: Option<PathBuf>,
    /// Start from the model that another run ended with (stage 2 after stage 1), from a published checkpoint (a directory, a GGUF file,
    /// a name on the hub), or from a language model with --vision-tower.
    #[arg(long, value_name = "PATH")]
    init_from: Option<PathBuf>,
    /// What is put on that checkpoint.
    #[command(flatten)]
    put: PutArgs,
    /// First check all data as `data check` does, images decoded, and name all that cannot be used.
    #[arg(long)]
    verify_data: bool,
    /// Use Burn's terminal dashboard instead of a progress bar.
    #[cfg(feature = "tui")]
    #[arg(long)]
    tui: bool,
}

pub(crate) fn run<B: AutodiffBackend, E: Extensions>(
    args: &TrainArgs,
    global: &GlobalArgs,
    device: &B::Device,
) -> anyhow::Result<()> {
    let dir = args.resume.as_ref().unwrap_or(&args.out);
    let mut config = match (&args.config, &args.resume) {
        (Some(path), _) => TrainConfig::load(path, &args.overrides)?,
        (None, Some(dir)) => {
            run_dir::read_config(dir)?;
            config_to_resume(&dir.join(CONFIG_FILE), &args.overrides)?
        }
        (None, None) => anyhow::bail!("give --config FILE or --resume DIR"),
    };
    // Before anything is read that may be large, or downloaded.
    require_dtype::<B>(config.model.dtype, device)?;
    init_from(&mut config, args, !global.quiet)?;
    let notes = run_dir::adopt_base_checkpoint(&mut config)?;
    for line in notes.iter().filter(|_| !global.quiet) {
        note(format_args!("{line}"));
    }
    let (model, origins) =
        run_dir::initial_model_with_origins::<B>(&config, &parts::<B, E>(), device)?;
    let (sources, on_error) = (sources::<E>(), config.data.on_error);
    let open = |data: &SourceConfig| {
        data.open_with(&config.model, config.seed, config.compat, &sources, on_error)
    };
    let source = open(&config.data.train)?;
    let valid = config.data.valid.as_ref().map(open).transpose()?;
    if args.verify_data {
        let pruner = registry::<B, E>(device).build(&config.pruner())?;
        let limits = sequence_limits(&config, &*pruner);
        let of_valid = SampleCheck::new(&config, limits.clone()).full_view().limits().clone();
        verify("data.train", &*source, limits, on_error, global)?;
        if let Some(valid) = &valid {
            verify("data.valid", &**valid, of_valid, on_error, global)?;
        }
    }
    let n = config.model.num_visual_tokens();
    if !global.quiet {
        note(format_args!(
            "{} stage, {} samples, {} of {n} visual tokens in fast steps ({})",
            config.stage.name(),
            source.len(),
            config.keep_count(n),
            config.pruner().name
        ));
        let cached = config.data.features.is_cached();
        let memory = MemoryPlan::new::<B>(&config, &*source, cached, device)?;
        note(format_args!("memory: {memory}"));
    }
    let interrupt = interrupt_flag()?;
    let training = Training::begin();
    let outcome = train(TrainJob {
        valid,
        resume: args.resume.is_some(),
        overwrite: args.overwrite,
        origins,
        progress: progress(args, global),
        interrupt,
        begun: training.begun.clone(),
        doors: doors::<B, E>(device),
        ..TrainJob::new(config, model, source, dir)
    });
    drop(training);
    let outcome = outcome?;
    if outcome.interrupted {
        return Err(Interrupted { step: outcome.steps, run: dir.display().to_string() }.into());
    }
    if outcome.totals.skipped_samples > 0 {
        note(format_args!(
            "{} samples were left out; metrics.jsonl names them",
            outcome.totals.skipped_samples
        ));
    }
    say(format_args!(
        "{} steps, {:.1} s of training, written to {}",
        outcome.steps,
        outcome.train_seconds,
        dir.display()
    ));
    Ok(())
}

/// Puts `--init-from` and what is put on it into the configuration: absolute, so that the run can be resumed and loaded from anywhere,
/// and a name on the hub as the files that were found under it.
fn init_from(config: &mut TrainConfig, args: &TrainArgs, progress: bool) -> anyhow::Result<()> {
    let find = |path: &Path| {
        let found = hub::locate(path, progress)?;
        std::fs::canonicalize(&found).with_context(|| format!("cannot find {}", found.display()))
    };
    if let Some(earlier) = &args.init_from {
        config.init_from = Some(find(earlier)?);
    }
    let LoadOptions { vision_tower, adapter, parts, .. } = args.put.load_options();
    let init = &mut config.init;
    init.vision_tower = vision_tower.or(init.vision_tower.take());
    init.adapter = adapter.or(init.adapter.take());
    init.parts.extend(parts);
    if !args.put.is_empty() {
        let run = |dir: &PathBuf| dir.join("config.toml").is_file();
        anyhow::ensure!(
            config.init_from.as_ref().is_some_and(|dir| !run(dir)),
            "--vision-tower, --adapter and --part are put on a checkpoint; give it with --init-from (a run brings its own)"
        );
    }
    for path in [&mut init.vision_tower, &mut init.adapter].into_iter().flatten() {
        *path = find(path)?;
    }
    for path in &mut init.parts {
        *path = find(path)?;
    }
    Ok(())
}

/// The config in a run directory with overrides. Its length is written there in steps or in epochs; an override may give it
/// in the other unit.
fn config_to_resume(path: &Path, overrides: &[String]) -> Result<TrainConfig, ConfigError> {
    let mut value = read_toml(path)?;
    let given = |key: &str| {
        overrides
            .iter()
            .any(|text| text.split_once('=').is_some_and(|(name, _)| name.trim() == key))
    };
    if let Some(table) = value.as_table_mut() {
        for (given_key, other) in [("steps", "epochs"), ("epochs", "steps")] {
            if given(given_key) && !given(other) {
                table.remove(other);
            }
        }
    }
    TrainConfig::from_toml_value(value, overrides)
}

/// Checks a data set, and names what cannot be used; the first few of every kind in full.
fn verify(
    what: &str,
    source: &dyn ExampleSource,
    limits: SequenceLimits,
    on_error: OnError,
    global: &GlobalArgs,
) -> anyhow::Result<()> {
    let options = CheckOptions { limits, images: true, listed: 20 };
    let report = check_source(what, source, &options, !global.quiet);
    let (bad, all) = (report.unusable, report.records);
    if bad > 0 || !global.quiet {
        note(format_args!("{}", report_text(&report)));
    }
    anyhow::ensure!(
        bad == 0 || on_error == OnError::Skip,
        "{what}: {bad} of {all} records cannot be used; correct or remove them, or set data.on_error = \"skip\""
    );
    Ok(())
}

#[cfg(feature = "tui")]
fn progress(args: &TrainArgs, global: &GlobalArgs) -> Progress {
    match (global.quiet, args.tui) {
        (true, _) => Progress::Silent,
        (false, true) => Progress::Tui,
        (false, false) => Progress::Bar,
    }
}

#[cfg(not(feature = "tui"))]
fn progress(_args: &TrainArgs, global: &GlobalArgs) -> Progress {
    if global.quiet { Progress::Silent } else { Progress::Bar }
}
