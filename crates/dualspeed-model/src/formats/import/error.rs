//! What can be wrong with somebody else's files: always the file, the key, and what to do.

use std::path::{Path, PathBuf};

use crate::config::ModelConfigError;
use crate::error::ModelError;

/// A checkpoint that cannot be read, or is not what it says it is.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// A file could not be read.
    #[error("cannot read {}: {source}; check the path, or fetch the file again", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file is damaged or of another format.
    #[error("{}: {problem}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A tensor in a file is damaged, or not of the type or shape it must have.
    #[error("{}: tensor `{key}`: {problem}", path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Its name in the file.
        key: String,
        /// What is wrong and what to do.
        problem: String,
    },
    /// A configuration value that this model does not have.
    #[error("{}: `{field}` = {value}: {problem}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field, as a path.
        field: String,
        /// Its value.
        value: String,
        /// What is supported.
        problem: String,
    },
    /// Model and checkpoint do not hold the same weights.
    #[error(
        "{}: the checkpoint does not fit the model.{}{}", path.display(),
        list("\n  missing in the checkpoint", .missing), list("\n  of no parameter of the model", .unused)
    )]
    Mismatch {
        /// The checkpoint.
        path: PathBuf,
        /// Parameters that no key fills, by path in the model.
        missing: Vec<String>,
        /// Keys that fill no parameter.
        unused: Vec<String>,
    },
    /// The configuration read makes no model.
    #[error("{}: {source}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: ModelConfigError,
    },
    /// Building the model failed.
    #[error(transparent)]
    Model(#[from] Box<ModelError>),
}

impl ImportError {
    pub(crate) fn read(path: &Path) -> impl FnOnce(std::io::Error) -> Self + use<> {
        let path = path.to_owned();
        move |source| Self::Read { path, source }
    }

    pub(crate) fn malformed(path: &Path, problem: impl ToString) -> Self {
        Self::Malformed { path: path.to_owned(), problem: problem.to_string() }
    }

    pub(crate) fn tensor(path: &Path, key: &str, problem: impl ToString) -> Self {
        Self::Tensor { path: path.to_owned(), key: key.to_owned(), problem: problem.to_string() }
    }
}

/// Names a dozen, counts the rest.
fn list(title: &str, names: &[String]) -> String {
    const SHOWN: usize = 12;
    if names.is_empty() {
        return String::new();
    }
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    let rest = names.len().saturating_sub(SHOWN);
    let rest = if rest > 0 { format!(", and {rest} more") } else { String::new() };
    format!("{title}: {shown}{rest}")
}
