//! Models by their name on the Hugging Face hub: `org/name`, `org/name@revision`.
//!
//! What the hub's Python library has downloaded is found in its cache by every build; a build with the feature `hub` downloads what is
//! not there. Both go by the environment that library goes by: `HF_HOME`, `HF_HUB_CACHE`, `HF_ENDPOINT`, `HF_TOKEN`, `HF_TOKEN_PATH`,
//! `HF_HUB_OFFLINE`.

mod cache;
#[cfg(feature = "hub")]
mod download;
mod environment;
mod name;

use std::path::{Path, PathBuf};

use anyhow::Context;

pub use cache::snapshot;
pub use environment::HubEnvironment;
pub use name::RepoName;

/// The path itself if it is there, else the directory of the model of that name on the hub: from the cache, or downloaded into it.
///
/// # Errors
/// If there is no such path and it is no name, or the model is not in the cache and cannot be downloaded.
pub fn locate(path: &Path, progress: bool) -> anyhow::Result<PathBuf> {
    if path.exists() {
        return Ok(path.to_owned());
    }
    let name = path.to_str().and_then(RepoName::parse);
    let name = name.with_context(|| format!("{} is not there; check the path", path.display()))?;
    fetch(&name, progress)
}

/// The directory of a name that a checkpoint's file has, if it is one of the hub's: from the cache, or downloaded into it. `None` if it
/// is no name, or nothing is found under it: many such names are paths on another machine. Why a download failed is logged.
pub fn find(name: &str, progress: bool) -> Option<PathBuf> {
    let name = RepoName::parse(name)?;
    let environment = HubEnvironment::read();
    if cfg!(feature = "hub") && !environment.offline {
        let fetched = fetch(&name, progress);
        return fetched.inspect_err(|error| tracing::warn!("{error:#}")).ok();
    }
    cache::snapshot(&environment, &name)
}

#[cfg(feature = "hub")]
fn fetch(name: &RepoName, progress: bool) -> anyhow::Result<PathBuf> {
    let environment = HubEnvironment::read();
    if environment.offline {
        let problem = "HF_HUB_OFFLINE is set, so nothing is downloaded";
        return cache::snapshot(&environment, name)
            .with_context(|| missing(&environment, name, problem));
    }
    download::fetch(&environment, name, progress)
}

#[cfg(not(feature = "hub"))]
fn fetch(name: &RepoName, _progress: bool) -> anyhow::Result<PathBuf> {
    let environment = HubEnvironment::read();
    let problem = format!(
        "this program is built without the feature `hub`; download it with `hf download {}`, or build with --features hub",
        name.repo
    );
    cache::snapshot(&environment, name).with_context(|| missing(&environment, name, &problem))
}

fn missing(environment: &HubEnvironment, name: &RepoName, problem: &str) -> String {
    format!(
        "{name} is no path here and not in the hub's cache {}; {problem}",
        environment.cache.display()
    )
}
