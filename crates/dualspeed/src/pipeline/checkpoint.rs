//! Checkpoints on disk, opened but not loaded.

use std::path::{Path, PathBuf};

use anyhow::Context;
use dualspeed_model::import::{Adapter, Checkpoint, Gguf, GgufVocabulary};

use super::options::PipelineOptions;

/// A checkpoint whose configuration and headers are read, and whose weights are not.
pub struct OpenedCheckpoint {
    /// The configuration and the headers of the weights.
    pub checkpoint: Checkpoint,
    /// The directory of the tokenizer's and the image processor's files.
    pub base: PathBuf,
    /// The adapter to put on the model, if the path was an adapter's.
    pub adapter: Option<PathBuf>,
    /// The vocabulary of a GGUF file without a `tokenizer.json` beside it.
    pub vocabulary: Option<GgufVocabulary>,
}

impl OpenedCheckpoint {
    /// Opens a checkpoint directory, an adapter directory (and then its base), or a GGUF file.
    ///
    /// # Errors
    /// What is missing or damaged, by file.
    pub fn open(path: &Path, options: &PipelineOptions) -> anyhow::Result<Self> {
        anyhow::ensure!(path.exists(), "{} is not there; check the path", path.display());
        if path.is_file() {
            let gguf = Gguf::open(path)?;
            let base = path.parent().unwrap_or(Path::new(".")).to_owned();
            let vocabulary = match base.join("tokenizer.json").is_file() {
                true => None,
                false => Some(gguf.vocabulary().with_context(|| {
                    format!("{} has no vocabulary; put tokenizer.json beside it", path.display())
                })?),
            };
            let checkpoint = gguf.into_checkpoint()?;
            return Ok(Self { checkpoint, base, adapter: None, vocabulary });
        }
        let (base, adapter) = match Adapter::is_at(path) && !path.join("model.safetensors").exists()
        {
            true => (adapter_base(path)?, Some(path.to_owned())),
            false => (path.to_owned(), None),
        };
        let checkpoint = Checkpoint::open(&base, &options.load)?;
        Ok(Self { checkpoint, base, adapter, vocabulary: None })
    }
}

/// The directory of an adapter's base model: a path from the adapter's directory or from the working directory.
fn adapter_base(dir: &Path) -> anyhow::Result<PathBuf> {
    let name = Adapter::open(dir)?.base_model.with_context(|| {
        format!(
            "{} names no base model; pass the base with --model and this with --adapter",
            dir.display()
        )
    })?;
    [dir.join(&name), PathBuf::from(&name)].into_iter().find(|path| path.is_dir()).with_context(|| {
        format!(
            "the base model {name:?} of {} is no directory here; pass the base with --model and this with --adapter",
            dir.display()
        )
    })
}
