//! `dualspeed train`: one model from a configuration, fresh, from an earlier run, or resumed.

use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::Args;
use dualspeed_data::ExampleSource;
use dualspeed_model::import::LoadOptions;
use dualspeed_model::require_dtype;
use dualspeed_ops::AutodiffBackend;
use dualspeed_train::{MemoryPlan, Progress, TrainConfig, TrainJob, train};

use super::checkpoint_args::PutArgs;
use super::global_args::GlobalArgs;
use crate::extensions::{Extensions, doors, parts, sources};
use crate::hub;
use crate::interrupt::{Interrupted, ctrl_c_flag};
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
    /// First decode every image and encode every conversation, and name all that cannot be used.
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
            TrainConfig::load(&dir.join("config.toml"), &args.overrides)?
        }
        (None, None) => anyhow::bail!("give --config FILE or --resume DIR"),
    };
    // Before anything is read that may be large, or downloaded.
    require_dtype::<B>(config.model.dtype, device)?;
    init_from(&mut config, args, !global.quiet)?;
    for note in run_dir::adopt_base_checkpoint(&mut config)? {
        eprintln!("{note}");
    }
    let model = run_dir::initial_model::<B>(&config, &parts::<B, E>(), device)?;
    let sources = sources::<E>();
    let source = config.data.train.open(&config.model, config.seed, &sources)?;
    let valid = config.data.valid.as_ref();
    let valid = valid.map(|valid| valid.open(&config.model, config.seed, &sources)).transpose()?;
    if args.verify_data {
        verify("data.train", &*source)?;
        valid.as_ref().map_or(Ok(()), |valid| verify("data.valid", &**valid))?;
    }
    let n = config.model.num_visual_tokens();
    if !global.quiet {
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
        progress: progress(args, global),
        interrupt: ctrl_c_flag()?,
        doors: doors::<B, E>(device),
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
