//! What a run started from, by content: the model, the vision tower, the tokenizers, the data.
//!
//! A run keeps the trained parameters alone; all else is read again from where it was. `origins.json` in the run directory has
//! hashes of it, so that a file which was replaced since is noticed before it changes results.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use dualspeed_core::files;
use dualspeed_data::ExampleSource;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::config::TrainConfig;
use crate::content_hash::file_sha256;
use crate::error::TrainError;
use crate::run_files::ORIGINS_FILE;

/// The origin of the model's weights: an earlier run, or a published checkpoint.
pub const INIT_FROM: &str = "init_from";
/// The origin of the vision tower, where it is not among the weights.
pub const VISION_TOWER: &str = "vision_tower";
/// The training data.
pub const TRAIN_DATA: &str = "data.train";
/// The validation data.
pub const VALID_DATA: &str = "data.valid";

/// All that a run started from, by what it is called in the config.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Origins {
    origins: BTreeMap<String, Origin>,
}

/// One thing that a run started from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Origin {
    /// The file or directory.
    pub path: Option<PathBuf>,
    /// Of an earlier run: how many steps it had done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<u64>,
    /// A hash of every part of it, by name.
    pub content: BTreeMap<String, String>,
}

impl Origin {
    /// A thing of one part.
    pub fn of(path: Option<PathBuf>, part: &str, hash: String) -> Self {
        Self { path, step: None, content: BTreeMap::from([(part.to_owned(), hash)]) }
    }

    /// Files, called by their names in `path`, which is their directory or the one file. Files are hashed in parallel.
    ///
    /// # Errors
    /// `TrainError::Io` names the file.
    pub fn of_files(path: &Path, names: &BTreeSet<PathBuf>) -> Result<Self, TrainError> {
        let content = names
            .par_iter()
            .map(|file| {
                let hash = file_sha256(file).map_err(TrainError::io("read", file))?;
                let name = file.strip_prefix(path).unwrap_or(file);
                let name = if name.as_os_str().is_empty() {
                    file.file_name().unwrap_or_default()
                } else {
                    name.as_os_str()
                };
                Ok((name.to_string_lossy().into_owned(), hash))
            })
            .collect::<Result<_, TrainError>>()?;
        Ok(Self { path: Some(path.to_owned()), step: None, content })
    }

    /// A tokenizer, with the file beside it that names its special tokens, where that is read.
    fn of_tokenizer(path: &Path) -> Result<Self, TrainError> {
        let dir = if path.is_dir() { Some(path) } else { path.parent() };
        let mut names = BTreeSet::new();
        if path.is_file() {
            names.insert(path.to_owned());
        }
        let known = ["tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt"];
        let whole = path.is_dir()
            || path.file_name().is_some_and(|name| known.iter().any(|known| name == *known));
        let beside = ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];
        let in_dir = if path.is_dir() { &known[..] } else { &[] };
        for name in beside.iter().chain(in_dir).filter(|_| whole) {
            names.extend(dir.map(|dir| dir.join(name)).filter(|path| path.is_file()));
        }
        let mut origin = Self::of_files(dir.unwrap_or(path), &names)?;
        origin.path = Some(path.to_owned());
        // The file may have another name where it was copied to.
        if let (true, Some(name)) = (path.is_file(), path.file_name())
            && let Some(hash) = origin.content.remove(&*name.to_string_lossy())
        {
            origin.content.insert("tokenizer".into(), hash);
        }
        Ok(origin)
    }

    fn place(&self) -> String {
        let path = self.path.as_ref().map(|path| format!(" {}", path.display()));
        let step = self.step.map(|step| format!(" at step {step}"));
        path.unwrap_or_default() + &step.unwrap_or_default()
    }

    /// What is another than in `now`, if anything.
    fn change(&self, now: &Self) -> Option<String> {
        let parts: BTreeSet<&String> = self.content.keys().chain(now.content.keys()).collect();
        let mut changes: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for part in parts {
            let change = match (self.content.get(part), now.content.get(part)) {
                (Some(before), Some(now)) if before == now => continue,
                (Some(_), Some(_)) => "changed",
                (Some(_), None) => "gone",
                _ => "new",
            };
            changes.entry(change).or_default().push(part);
        }
        if changes.is_empty() {
            return None;
        }
        let changes: Vec<String> =
            changes.iter().map(|(how, parts)| format!("{how}: {}", parts.join(", "))).collect();
        let (before, after) = (self.place(), now.place());
        let moved = if before == after { String::new() } else { format!(" -> now{after}") };
        Some(format!("{before}{moved} ({})", changes.join("; ")))
    }
}

impl Origins {
    /// Adds one.
    pub fn insert(&mut self, name: &str, origin: Origin) {
        self.origins.insert(name.to_owned(), origin);
    }

    /// The one of that name.
    pub fn get(&self, name: &str) -> Option<&Origin> {
        self.origins.get(name)
    }

    /// Adds the tokenizers that a config names.
    ///
    /// # Errors
    /// `TrainError::Io` names the file that cannot be read.
    pub fn with_tokenizers(mut self, config: &TrainConfig) -> Result<Self, TrainError> {
        let sources =
            [(TRAIN_DATA, Some(&config.data.train)), (VALID_DATA, config.data.valid.as_ref())];
        for (name, source) in sources {
            let Some(source) = source else { continue };
            let of_file = source.llava_json.as_ref().and_then(|section| section.tokenizer.as_ref());
            let path = of_file.or(source.tokenizer.as_ref()).filter(|path| path.exists());
            if let Some(path) = path {
                self.insert(&format!("{name}.tokenizer"), Origin::of_tokenizer(path)?);
            }
        }
        Ok(self)
    }

    /// Adds the data sets, as wholes: for the record, as records of a run are compared one by one.
    pub(crate) fn with_data(
        mut self,
        train: &dyn ExampleSource,
        valid: Option<&dyn ExampleSource>,
    ) -> Self {
        for (name, source) in [(TRAIN_DATA, Some(train)), (VALID_DATA, valid)] {
            if let Some(source) = source {
                self.insert(name, Origin::of(None, "fingerprint", source.fingerprint()));
            }
        }
        self
    }

    /// Reads those of a run; `None` where none were written.
    ///
    /// # Errors
    /// `TrainError::Io` when the file cannot be read or parsed.
    pub fn read(run_dir: &Path) -> Result<Option<Self>, TrainError> {
        let path = run_dir.join(ORIGINS_FILE);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(TrainError::io("read", path)(error)),
        };
        let origins = serde_json::from_slice(&bytes).map_err(std::io::Error::from);
        origins.map(Some).map_err(TrainError::io("read", path))
    }

    /// Writes them into a run directory.
    ///
    /// # Errors
    /// `TrainError::Io`.
    pub fn write(&self, run_dir: &Path) -> Result<(), TrainError> {
        let path = run_dir.join(ORIGINS_FILE);
        let text = serde_json::to_vec_pretty(self).map_err(std::io::Error::from);
        text.and_then(|text| files::write_atomic(&path, &text))
            .map_err(TrainError::io("write", path))
    }

    /// Refuses what is not what a run started from. Data sets are compared elsewhere, record by record; what is in one of
    /// the two alone is not compared.
    ///
    /// # Errors
    /// `OriginChanged` names everything that changed.
    pub fn check(&self, now: &Self, run_dir: &Path) -> Result<(), TrainError> {
        let compared = |name: &&String| ![TRAIN_DATA, VALID_DATA].contains(&name.as_str());
        let changed = self.origins.iter().filter(|(name, _)| compared(name));
        let changed: Vec<String> = changed
            .filter_map(|(name, before)| Some(format!("{name}{}", before.change(now.get(name)?)?)))
            .collect();
        match changed.is_empty() {
            true => Ok(()),
            false => Err(TrainError::OriginChanged { run: run_dir.to_owned(), changed }),
        }
    }

    /// Takes over from `now` what is not recorded yet, or has moved; says whether anything has changed by that.
    pub(crate) fn update(&mut self, now: &Self) -> bool {
        let before = self.clone();
        for (name, origin) in &now.origins {
            let known = self.origins.entry(name.clone()).or_insert_with(|| origin.clone());
            known.path.clone_from(&origin.path);
        }
        *self != before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moved_files_are_the_same_and_replaced_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, text).unwrap();
            path
        };
        let origins = |path: &Path| {
            let mut origins = Origins::default();
            origins.insert("tokenizer", Origin::of_tokenizer(path).unwrap());
            origins
        };
        let first = write("a/tokenizer.json", "one");
        let recorded = origins(&first);
        recorded.write(dir.path()).unwrap();
        assert_eq!(Origins::read(dir.path()).unwrap().as_ref(), Some(&recorded));
        let check =
            |now: &Origins| recorded.check(now, dir.path()).map_err(|error| error.to_string());
        check(&origins(&write("b/copied.json", "one"))).unwrap();
        let error = check(&origins(&write("a/tokenizer.json", "two"))).unwrap_err();
        for words in ["a/tokenizer.json", "changed: tokenizer", ORIGINS_FILE] {
            assert!(error.contains(words), "{error}");
        }
        // What stands beside it counts where it is read.
        write("a/tokenizer.json", "one");
        write("a/tokenizer_config.json", "{}");
        assert!(check(&origins(&first)).unwrap_err().contains("new: tokenizer_config.json"));
        // What was never recorded is not compared.
        check(&Origins::default()).unwrap();
    }
}
