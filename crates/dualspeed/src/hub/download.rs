//! Downloads into the hub's cache.

use std::path::PathBuf;

use anyhow::Context;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};

use super::cache;
use super::environment::HubEnvironment;
use super::name::RepoName;
use crate::output::note;

/// Attempts after the first, each from where the last one ended.
const RETRIES: usize = 3;

/// The directory of a model's newest files of its revision; those that are not in the cache yet are downloaded. Where the hub cannot be
/// reached, what is in the cache is taken, with a warning.
///
/// # Errors
/// If there is no such model, it may not be read, or the connection fails and nothing is in the cache.
pub(super) fn fetch(
    environment: &HubEnvironment,
    name: &RepoName,
    progress: bool,
) -> anyhow::Result<PathBuf> {
    let api = api(environment, progress).context("cannot set up the connection to the hub")?;
    let repo = Repo::with_revision(name.repo.clone(), RepoType::Model, name.revision.clone());
    let repo = api.repo(repo);
    let info = match repo.info() {
        Ok(info) => info,
        Err(error) => {
            return match (status(&error), cache::snapshot(environment, name)) {
                (None, Some(dir)) => {
                    note(format_args!(
                        "warning: {}: {error}; taking {name} from the cache",
                        environment.endpoint
                    ));
                    Ok(dir)
                }
                (status, _) => Err(refused(environment, name, status, error)),
            };
        }
    };
    let files: Vec<String> = info.siblings.into_iter().map(|file| file.rfilename).collect();
    let dir = environment.cache.join(format!("models--{}", name.repo.replace('/', "--")));
    let dir = dir.join("snapshots").join(&info.sha);
    for file in wanted(&files) {
        if !dir.join(file).is_file() {
            get(&repo, file).with_context(|| format!("{name}: {file}"))?;
        }
    }
    anyhow::ensure!(
        dir.is_dir(),
        "{name} has no file that makes a model: none of {}",
        files.join(", ")
    );
    Ok(dir)
}

fn api(environment: &HubEnvironment, progress: bool) -> Result<Api, ApiError> {
    // The crate reads less of the environment than the Python library, so everything is handed to it.
    let cache = std::path::absolute(&environment.cache).unwrap_or(environment.cache.clone());
    // `ApiBuilder::new` would look for a home directory, and panic where there is none.
    ApiBuilder::from_cache(Cache::new(cache))
        .with_endpoint(environment.endpoint.clone())
        .with_token(environment.token.clone())
        .with_retries(RETRIES)
        .with_progress(progress)
        .with_user_agent(env!("CARGO_PKG_NAME"), env!("CARGO_PKG_VERSION"))
        .build()
}

fn get(repo: &ApiRepo, file: &str) -> Result<PathBuf, ApiError> {
    repo.download(file)
}

/// The files that make a model, of all that a repository has: its JSON and templates, its tokenizer, and its weights once: as
/// safetensors if they are there, else as pickles. GGUF files are taken by their own path.
fn wanted(files: &[String]) -> Vec<&str> {
    let here = |file: &&String| !file.contains('/');
    let top = || files.iter().filter(here).map(String::as_str);
    let shards =
        |prefix: &str, end: &str| top().any(|file| file.starts_with(prefix) && file.ends_with(end));
    let whole = shards("model", ".safetensors");
    let adapter = shards("adapter_model", ".safetensors");
    top()
        .filter(|file| match file.rsplit_once('.') {
            Some((_, "json" | "jinja" | "model" | "safetensors")) => true,
            Some((_, "bin")) if file.starts_with("pytorch_model") => !whole,
            Some((_, "bin")) if file.starts_with("adapter_model") => !adapter,
            Some((stem, "bin")) => {
                matches!(stem, "mm_projector" | "mode_isolator" | "non_lora_trainables")
            }
            _ => false,
        })
        .filter(|file| !(whole && *file == "pytorch_model.bin.index.json"))
        .collect()
}

/// The status of an answer that refuses; `None` if there was no answer.
fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(error) => match &**error {
            ureq::Error::Status(status, _) => Some(*status),
            ureq::Error::Transport(_) => None,
        },
        ApiError::TooManyRetries(error) => status(error),
        _ => None,
    }
}

fn refused(
    environment: &HubEnvironment,
    name: &RepoName,
    status: Option<u16>,
    error: ApiError,
) -> anyhow::Error {
    let advice = match status {
        Some(401 | 403) if environment.token.is_none() => {
            "it wants a token, or is not there; accept its terms on its page and set HF_TOKEN"
        }
        Some(401 | 403) => "HF_TOKEN may not read it; accept its terms on its page",
        Some(404) => "there is no such model or revision; check the name",
        Some(_) => "the hub refuses; try again later",
        None => "the hub cannot be reached and the model is not in the cache",
    };
    anyhow::anyhow!("{name} at {}: {advice} ({error})", environment.endpoint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_fetched_once() {
        let names = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let both = names(
            "config.json README.md model-1.safetensors model.safetensors.index.json pytorch_model-1.bin pytorch_model.bin.index.json tokenizer.model onnx/model.onnx optimizer.pt",
        );
        assert_eq!(
            wanted(&both),
            [
                "config.json",
                "model-1.safetensors",
                "model.safetensors.index.json",
                "tokenizer.model"
            ]
        );
        let original = names(
            "config.json pytorch_model.bin mm_projector.bin mode_isolator.bin training_args.bin",
        );
        assert_eq!(
            wanted(&original),
            ["config.json", "pytorch_model.bin", "mm_projector.bin", "mode_isolator.bin"]
        );
        let adapter =
            names("adapter_config.json adapter_model.bin non_lora_trainables.bin config.json");
        assert_eq!(wanted(&adapter).len(), 4);
    }
}
