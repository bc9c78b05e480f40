//! Errors of this crate: what went wrong, where, and what to do about it.

use std::path::{Path, PathBuf};

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("cannot read the config {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The text is not TOML.
    #[error("{origin} is not valid TOML: {message}")]
    Syntax {
        /// The file or "config".
        origin: String,
        /// The parser's message with line and column.
        message: String,
    },
    /// A key that no section knows.
    #[error("unknown key `{key}` in the config{}", match nearest {
        Some(nearest) => format!("; did you mean `{nearest}`?"),
        None => String::from("; remove it or see the documented keys of that section"),
    })]
    UnknownKey {
        /// The full dotted path of the key.
        key: String,
        /// The known key that is spelled most alike.
        nearest: Option<String>,
    },
    /// A key that there no longer is.
    #[error("the config has no key `{key}` any more; {advice}")]
    RemovedKey {
        /// The full dotted path of the key.
        key: String,
        /// What to write instead.
        advice: String,
    },
    /// A value of the wrong type, or a missing key.
    #[error("the config does not fit: {message}")]
    Type {
        /// The message with the key's path.
        message: String,
    },
    /// A value outside of its range.
    #[error("`{key} = {value}` cannot be used: {problem}; {advice}")]
    Invalid {
        /// The full dotted path of the key.
        key: String,
        /// The value found.
        value: String,
        /// Why it cannot be used.
        problem: String,
        /// What to write instead.
        advice: String,
    },
    /// An override that is not `key=value` or that does not fit the config.
    #[error("cannot apply `--set {text}`: {problem}")]
    Override {
        /// The text of the override.
        text: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// Anything that stops a training, an evaluation or the computation of features.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The configuration cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A sample could not be read.
    #[error(transparent)]
    Data(#[from] dualspeed_data::DataError),
    /// The model refused its input.
    #[error(transparent)]
    Model(#[from] dualspeed_model::ModelError),
    /// Something that the config names and nobody registered, or that refused its options.
    #[error(transparent)]
    Name(#[from] dualspeed_core::RegistryError),
    /// The pruner is unknown or refused its input.
    #[error(transparent)]
    Pruner(#[from] dualspeed_model::PruneError),
    /// The run directory holds files already.
    #[error(
        "the run directory {path} exists and is not empty; pass --overwrite to replace it, --resume to continue \
         it, or choose another directory"
    )]
    RunDirExists {
        /// The directory.
        path: PathBuf,
    },
    /// A run directory without any checkpoint.
    #[error(
        "{path} holds no complete checkpoint, so there is nothing to continue from; begin the run anew: {}",
        anew(run)
    )]
    NoCheckpoint {
        /// The directory of checkpoints.
        path: PathBuf,
        /// The run directory.
        run: PathBuf,
    },
    /// There are checkpoints, and all are damaged.
    #[error(
        "no checkpoint in {path} is whole ({}); put one back from a copy, or begin the run anew: {}",
        damaged.join("; "),
        anew(run)
    )]
    NoWholeCheckpoint {
        /// The directory of checkpoints.
        path: PathBuf,
        /// The run directory.
        run: PathBuf,
        /// `name: what is wrong`, newest first.
        damaged: Vec<String>,
    },
    /// The checkpoint belongs to another run than the one that is to go on.
    #[error(
        "the checkpoint {path} cannot go on like this: {}; resume with the values it was written with, or start a new run \
         directory", differing.join("; ")
    )]
    ForeignCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// `key is x, was y: why it has to stay` for every key that differs and must not.
        differing: Vec<String>,
    },
    /// What the run started from is no longer what it was.
    #[error(
        "what the run {run} started from is no longer what it was: {}; put it back, or name the place it was moved to (if the \
         change is meant, delete {}: what is there now is then taken as it is)",
        changed.join("; "),
        run.join(crate::run_files::ORIGINS_FILE).display()
    )]
    OriginChanged {
        /// The run directory.
        run: PathBuf,
        /// `what: how it changed`.
        changed: Vec<String>,
    },
    /// Another process writes the run directory.
    #[error(
        "the run directory {run} is being written by {owner}; wait for it or end it, or choose another directory{advice}"
    )]
    RunLocked {
        /// The run directory.
        run: PathBuf,
        /// Process, host and start time.
        owner: String,
        /// What to do if that process is gone and cannot be seen from here.
        advice: String,
    },
    /// A checkpoint that cannot be read back, or does not fit the model.
    #[error("the checkpoint {path} cannot be used: {problem}")]
    BadCheckpoint {
        /// The checkpoint.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A checkpoint of another version: those before it in the same run are no better.
    #[error(
        "the checkpoint {path} has format {found}, this version reads {expected}: train anew in another run directory (or \
         with --overwrite), or continue with the version that wrote it"
    )]
    CheckpointFormat {
        /// The checkpoint.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format of this version.
        expected: u32,
    },
    /// The file system refused.
    #[error("cannot {doing} {path}: {source}{}", io_advice(source))]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The disk has no room for a checkpoint.
    #[error(
        "{path} has {free_gib:.2} GiB free and a checkpoint takes {needed_gib:.2}: free some, or choose another directory"
    )]
    NoSpace {
        /// The run directory.
        path: PathBuf,
        /// What is free.
        free_gib: f64,
        /// What one checkpoint takes.
        needed_gib: f64,
    },
    /// The loss of a step in the training of a vision tower is not a number.
    #[error(
        "the loss of step {step} is {value} (samples {}); nothing is written: lower the learning rate, or look at these \
         samples", samples.join(", ")
    )]
    NonFiniteLoss {
        /// The optimiser step, from 0.
        step: u64,
        /// The loss.
        value: f64,
        /// The ids of the samples of the step.
        samples: Vec<String>,
    },
    /// Steps in a row made losses, gradients or updates that are not finite.
    #[error(
        "{in_a_row} steps in a row were skipped, the last one {step}: {reason} (samples {}); the model is as it was before \
         them: lower optim.lr, lower optim.max_grad_norm, look at these samples, or raise optim.max_skipped",
        samples.join(", ")
    )]
    TooManySkipped {
        /// Steps in a row.
        in_a_row: u64,
        /// The last of them, from 0.
        step: u64,
        /// What was not finite in it.
        reason: String,
        /// The ids of its samples.
        samples: Vec<String>,
    },
    /// A state that is not worth saving.
    #[error(
        "`{tensor}` has values that are not finite after step {step}, so nothing is saved; look for such values in the weights \
         the run started from"
    )]
    NonFiniteState {
        /// The parameter or moment.
        tensor: String,
        /// Optimiser steps done.
        step: u64,
    },
    /// A run was ended by an error.
    #[error("{error}; {saved}")]
    Ended {
        /// The error.
        error: Box<TrainError>,
        /// What of the run is in checkpoints.
        saved: SavedSteps,
    },
    /// No parameter is trainable in this stage.
    #[error("stage {stage} leaves no parameter to train: {advice}")]
    NothingToTrain {
        /// The stage's name.
        stage: String,
        /// What to change.
        advice: String,
    },
    /// The data set has no sample.
    #[error("the data set {what} is empty; check the data section of the config")]
    EmptySource {
        /// Which data set.
        what: String,
    },
    /// An image without a row in the feature cache.
    #[error(
        "sample {sample}: its image is not in the feature cache; compute the cache from the data set that is trained on"
    )]
    FeatureMissing {
        /// The sample's id.
        sample: String,
    },
    /// Features of the tower could not be written.
    #[error(
        "cannot write the features {path}: {source}; those written before stay and are not computed again: free some space, \
         set data.features.dir to another disk, or data.features.cache = \"memory\""
    )]
    FeatureWrite {
        /// The shard.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The run was told to end while features were computed.
    #[error(
        "interrupted at sample {done} of {of} while features were computed; start it again: with data.features.cache = \
         \"disk\" they are not computed again"
    )]
    FeaturesInterrupted {
        /// Samples that are done.
        done: usize,
        /// Samples in all.
        of: usize,
    },
    /// A feature store that cannot be used.
    #[error("the feature store {path} cannot be used: {problem}; {advice}")]
    FeatureStore {
        /// The folder or the shard.
        path: PathBuf,
        /// What is wrong.
        problem: String,
        /// What to do.
        advice: String,
    },
    /// The run was told to end while the data was checked.
    #[error(
        "interrupted at sample {done} of {of} while the data was checked; nothing is written, start it again"
    )]
    CheckInterrupted {
        /// Samples that are done.
        done: usize,
        /// Samples in all.
        of: usize,
    },
    /// Too many samples in a row cannot be used.
    #[error(
        "{in_a_row} samples in a row cannot be used, the last one: {last}; see whether the disk with the data is there, correct \
         the data (`dualspeed data check` lists what is wrong), or raise data.max_skipped"
    )]
    TooManySamplesSkipped {
        /// Samples in a row.
        in_a_row: usize,
        /// What was wrong with the last one.
        last: String,
    },
    /// A background thread ended without a result.
    #[error("the {what} thread stopped unexpectedly; its message is on stderr")]
    Thread {
        /// What the thread was doing.
        what: &'static str,
    },
    /// A training step ended in a panic.
    #[error("a training step failed: {message}{}", memory_advice(message))]
    Step {
        /// What the panic said.
        message: String,
    },
    /// A tensor could not be read back from the device.
    #[error("cannot read {what} back from the device: {message}{}", memory_advice(message))]
    Device {
        /// What was read.
        what: &'static str,
        /// The device's message.
        message: String,
    },
}

/// What of a run that an error ended is in checkpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SavedSteps {
    /// A checkpoint has every step that was done.
    All {
        /// Steps.
        step: u64,
        /// The run directory.
        run: PathBuf,
    },
    /// The newest checkpoint is older than the last step.
    Until {
        /// Its steps.
        step: u64,
        /// Steps that were done.
        done: u64,
        /// The run directory.
        run: PathBuf,
    },
    /// There is no checkpoint.
    Nothing {
        /// Steps that were done.
        done: u64,
    },
}

impl std::fmt::Display for SavedSteps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::All { step, run } => {
                let run = run.display();
                write!(f, "all {step} steps are saved: go on with `dualspeed train --resume {run}`")
            }
            Self::Until { step, done, run } => {
                let run = run.display();
                write!(
                    f,
                    "{done} steps were done, the newest checkpoint has {step}: go on from it with `dualspeed train \
                     --resume {run}`"
                )
            }
            Self::Nothing { done } => {
                write!(f, "{done} steps were done, and none could be saved; start the run anew")
            }
        }
    }
}

impl TrainError {
    /// Whether this is about numbers of one step that are not finite.
    pub(crate) fn is_non_finite(&self) -> bool {
        use dualspeed_model::{ModelError, PruneError};
        matches!(
            self,
            Self::Pruner(PruneError::NotFinite { .. })
                | Self::Model(ModelError::Prune(PruneError::NotFinite { .. }))
        )
    }

    /// Backends have no errors to return: they panic, on a device that is out of memory for one.
    pub(crate) fn from_panic(panic: &(dyn std::any::Any + Send)) -> Self {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
        Self::Step { message: message.unwrap_or("no message").to_owned() }
    }

    /// Wraps an I/O error with what was attempted, and where.
    pub fn io(
        doing: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { doing, path, source }
    }
}

/// The command that begins a run anew from its own config.
fn anew(run: &Path) -> String {
    let run = run.display();
    format!("dualspeed train --config {run}/config.toml --out {run} --overwrite")
}

fn memory_advice(message: &str) -> &'static str {
    let message = message.to_lowercase().replace(['_', ' '], "");
    let exhausted = ["outofmemory", "buffertoobig", "memoryallocation", "cannotallocate"];
    match exhausted.iter().any(|words| message.contains(words)) {
        true => {
            "; the device is out of memory: set memory.recompute = \"input\" or a lower memory.budget_gib, lower \
             batch.size (and raise batch.accumulation), or lower model.max_length"
        }
        false => "",
    }
}

fn io_advice(error: &std::io::Error) -> &'static str {
    match error.kind() {
        std::io::ErrorKind::StorageFull => {
            "; the disk is full: free some space and resume, the last checkpoint is intact"
        }
        std::io::ErrorKind::PermissionDenied => "; check the permissions of the directory",
        _ => "",
    }
}
