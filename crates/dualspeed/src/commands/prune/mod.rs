//! `dualspeed prune`: what pruners keep, as a picture, as numbers, or against the clock.

mod bench;
mod features;
mod grid;
mod help;

use std::path::PathBuf;

use clap::Args;
use dualspeed_model::Parts;
use dualspeed_ops::Backend;

use super::global_args::GlobalArgs;
use super::image_args::ImageArgs;
use crate::extensions::{Extensions, registry};

/// Arguments of `prune`.
#[derive(Debug, Args)]
pub(crate) struct PruneArgs {
    /// The picture.
    #[arg(long)]
    image: Option<PathBuf>,
    /// How the picture is read.
    #[command(flatten)]
    images: ImageArgs,
    /// Pruners by name, separated by commas; `all`, or `help` to list them with their options. Options follow the name:
    /// `visionzip:compat=official:contextual=10`.
    #[arg(long, default_value = "divprune", value_delimiter = ',')]
    pruner: Vec<String>,
    /// How many visual tokens to keep.
    #[arg(long)]
    keep: Option<usize>,
    /// The PNG to write.
    #[arg(long)]
    out: Option<PathBuf>,
    /// A run whose projector to use; without it, pruners see the embedded tower's features.
    #[arg(long)]
    run: Option<PathBuf>,
    /// The question, for text-guided pruners.
    #[arg(long, default_value = "")]
    prompt: String,
    /// The seed of pruners that draw.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Replace the PNG if it exists.
    #[arg(long)]
    overwrite: bool,
    /// Run on features from a safetensors file instead of a picture: projected, hidden, cls_attention,
    /// keys, patch_text, text, ... (see docs/pruners.md).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "run", "bench"])]
    features: Option<PathBuf>,
    /// Time the pruners on random features of 576 and 2880 tokens, in batches of 1 and 16.
    #[arg(long, conflicts_with = "image")]
    bench: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(crate) fn run<B: Backend, E: Extensions>(
    args: &PruneArgs,
    global: &GlobalArgs,
    parts: &Parts,
    device: &B::Device,
) -> anyhow::Result<()> {
    let registry = registry::<B, E>(device);
    if args.pruner.iter().any(|name| name == "help") {
        return help::run(&registry);
    }
    match (&args.features, args.bench) {
        (Some(path), _) => features::run(args, path, &registry, device),
        (None, true) => bench::run(args, global, &registry, device),
        (None, false) => grid::run(args, &registry, parts, device),
    }
}
