//! `dualspeed export`: a run's model, or a checkpoint, in another format.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use dualspeed_model::Parts;
use dualspeed_model::export::names::Layout;
use dualspeed_model::export::{TOWER, export_adapter};
use dualspeed_ops::Backend;

use super::checkpoint_args::CheckpointArgs;
use super::global_args::GlobalArgs;
use crate::checkpoint::OpenedCheckpoint;
use crate::extensions::{Extensions, sources};
use crate::output::say;
use crate::pipeline::{GenerativeModel, Pipeline, dtype_to_read};
use crate::whole_dir::WholeDir;

/// Arguments of `export`.
#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The run directory, or one checkpoint in it.
    #[arg(long, required_unless_present = "model", conflicts_with = "model")]
    run: Option<PathBuf>,
    /// A checkpoint to convert.
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// How the checkpoint is read; --dtype also says what weights are written as.
    #[command(flatten)]
    checkpoint: CheckpointArgs,
    /// The format.
    #[arg(long, value_enum)]
    format: ExportFormat,
    /// The directory to make.
    #[arg(long)]
    out: PathBuf,
    /// Replace what an earlier export wrote there; files of others stay.
    #[arg(long)]
    overwrite: bool,
    /// Size of a shard, in GB.
    #[arg(long, default_value_t = 5.0)]
    shard_size: f64,
    /// With --format peft: the base model to name, instead of writing one.
    #[arg(long)]
    base: Option<String>,
    /// With --format llava: what config.json calls the vision tower, a path or a name on the hub; by default the absolute path of its
    /// directory in OUT, where the published code finds it until OUT is moved.
    #[arg(long, value_name = "NAME")]
    tower_name: Option<String>,
}

/// A format to export to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// A PEFT adapter (with its base model, unless --base names one) that Python's peft loads.
    Peft,
    /// Transformers' LLaVA, adapters folded in.
    Hf,
    /// The layout of LLaVA's own code, adapters folded in.
    Llava,
}

pub(crate) fn run<B: Backend, E: Extensions>(
    args: &ExportArgs,
    global: &GlobalArgs,
    parts: &Parts,
    device: &B::Device,
) -> anyhow::Result<()> {
    // Before the model is read: a place that cannot be taken costs no time.
    let out = WholeDir::begin(&args.out, args.overwrite)?;
    let mut options = args.checkpoint.options(global)?;
    let dtype = options.load.dtype;
    options.load.dtype = dtype_to_read(dtype);
    if let (Some(base), Some(path)) = (&args.base, &args.model) {
        let opened = OpenedCheckpoint::open(path, &options.load, !global.quiet)?;
        anyhow::ensure!(
            opened.checkpoint.adapter().is_none_or(|adapter| adapter.folded() == 0),
            "{base} is no longer the base of this adapter: a part of it is folded into the base's weights; leave --base out, and \
             the base is written too"
        );
    }
    let pipeline = match (&args.run, &args.model) {
        (Some(dir), _) => Pipeline::<B>::from_run(dir, parts, &sources::<E>(), device)?,
        (None, Some(path)) => Pipeline::from_checkpoint(path, &options, parts, device)?.0,
        (None, None) => anyhow::bail!("give --run DIR or --model PATH"),
    };
    let GenerativeModel::Llava(model) = &pipeline.model else {
        anyhow::bail!("only models with vision are exported")
    };
    // Before the base is written.
    anyhow::ensure!(
        args.format != ExportFormat::Peft || model.lora.is_some(),
        "the model has no adapters to export; use --format hf or llava, which write all of it"
    );
    let mut options = pipeline.export_options(dtype, (args.shard_size * 1e9) as usize);
    options.tower = match &args.tower_name {
        Some(name) => Some(name.clone()),
        None => Some(std::path::absolute(args.out.join(TOWER))?.display().to_string()),
    };
    match args.format {
        ExportFormat::Hf => pipeline.save(model, out.path(), Layout::Transformers, &options)?,
        ExportFormat::Llava => pipeline.save(model, out.path(), Layout::Original, &options)?,
        ExportFormat::Peft => {
            let base = match &args.base {
                Some(base) => base.clone(),
                None => {
                    // The adapter's base, beside it: the model without its adapters.
                    let dir = out.path().join("base");
                    let base = model.clone().without_lora();
                    pipeline.save(&base, &dir, Layout::Transformers, &options)?;
                    "base".to_owned()
                }
            };
            export_adapter(model, out.path(), &base)?;
        }
    }
    out.put_in_place()?;
    say(format_args!("{}", args.out.display()));
    Ok(())
}
