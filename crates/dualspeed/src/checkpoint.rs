//! Checkpoints on disk, opened but not loaded: what a path is, and what else belongs to it.

use std::path::{Path, PathBuf};

use anyhow::Context;
use dualspeed_data::picture::ProcessorFile;
use dualspeed_data::{FitMode, ImageProcessor, read_processor};
use dualspeed_model::import::config::{HfConfig, read_config};
use dualspeed_model::import::{
    Adapter, Architecture, Checkpoint, Gguf, GgufVocabulary, LoadOptions, has_parts, has_weights,
};

use crate::hub;

/// A checkpoint whose configuration and headers are read, and whose weights are not.
pub struct OpenedCheckpoint {
    /// The configuration and the headers of the weights, with tower, parts and adapter put on them.
    pub checkpoint: Checkpoint,
    /// What was put on it, with everything that was found: loading takes these.
    pub load: LoadOptions,
    /// The directory of the tokenizer's files.
    pub base: PathBuf,
    /// Directories of the image processor's file, the first that has one counts.
    pub processors: Vec<PathBuf>,
    /// The vocabulary of a GGUF file without a `tokenizer.json` beside it.
    pub vocabulary: Option<GgufVocabulary>,
}

impl OpenedCheckpoint {
    /// Opens what `path` is, with what `load` puts on it; `progress` is whether downloads show a bar:
    ///
    /// | path | what is opened |
    /// |---|---|
    /// | a directory with weights | it, with that on it |
    /// | an adapter's directory, peft's or LLaVA's | the base model that it names, and it |
    /// | a directory of parts (LLaVA's stage 1) | the language model that its `config.json` names, and them |
    /// | a GGUF file | it |
    /// | `org/name`, `org/name@revision` | the directory of that model of the hub |
    ///
    /// # Errors
    /// What is missing or damaged, by file, and the argument that would say where it is.
    pub fn open(path: &Path, load: &LoadOptions, progress: bool) -> anyhow::Result<Self> {
        let path = &hub::locate(path, progress)?;
        let locate = |path: &PathBuf| hub::locate(path, progress);
        let mut load = LoadOptions {
            adapter: load.adapter.as_ref().map(locate).transpose()?,
            vision_tower: load.vision_tower.as_ref().map(locate).transpose()?,
            parts: load.parts.iter().map(locate).collect::<Result<_, _>>()?,
            ..load.clone()
        };
        let find = |name: &str| hub::find(name, progress);
        if path.is_file() {
            return Self::open_file(path, load, &find);
        }
        let base = match Kind::of(path) {
            Kind::Whole => path.clone(),
            Kind::Adapter => {
                anyhow::ensure!(
                    load.adapter.is_none(),
                    "{} is an adapter itself; give its base model instead of it to put another on that",
                    path.display()
                );
                load.adapter = Some(path.clone());
                let name = Adapter::open(path)?.base_model;
                base_model(path, name.as_deref(), "--adapter", progress)?
            }
            Kind::Parts => {
                load.parts.insert(0, path.clone());
                let config = path.join("config.json");
                let config = config.is_file().then(|| read_config(&config)).transpose()?;
                let name = config.and_then(|config| config.name_or_path);
                base_model(path, name.as_deref(), "--part", progress)?
            }
        };
        let checkpoint = Checkpoint::open_with(&base, &load, &find)?;
        let given = load.adapter.iter().chain(&load.parts).filter(|path| path.is_dir()).cloned();
        let processors = given.chain([base.clone()]).chain(checkpoint.tower.clone()).collect();
        Ok(Self { checkpoint, load, base, processors, vocabulary: None })
    }

    fn open_file(
        path: &Path,
        load: LoadOptions,
        find: &dyn Fn(&str) -> Option<PathBuf>,
    ) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !path.extension().is_some_and(|end| end == "bin" || end == "safetensors"),
            "{} is a file of weights; give its directory, or, if it holds single parts, the language model here and the file \
             with --part",
            path.display()
        );
        let gguf = Gguf::open(path)?;
        // Before the vocabulary, which files of other kinds have not.
        gguf.config()?;
        let base = path.parent().unwrap_or(Path::new(".")).to_owned();
        let vocabulary = match base.join("tokenizer.json").is_file() {
            true => None,
            false => Some(gguf.vocabulary().with_context(|| {
                format!("{} has no vocabulary; put tokenizer.json beside it", path.display())
            })?),
        };
        let checkpoint = gguf.into_checkpoint()?.compose(&load, find)?;
        let processors = [base.clone()].into_iter().chain(checkpoint.tower.clone()).collect();
        Ok(Self { checkpoint, load, base, processors, vocabulary })
    }

    /// What LLaVA's own `config.json` says about rectangles (`pad`, `square`, `anyres`): that of what was put on a model before its own.
    pub fn image_aspect_ratio(&self) -> Option<String> {
        let own = self.checkpoint.config.image_aspect_ratio.clone();
        let given = self.load.adapter.iter().chain(&self.load.parts);
        let mut said = given.filter_map(|dir| {
            let HfConfig { image_aspect_ratio, .. } = read_config(&dir.join("config.json")).ok()?;
            image_aspect_ratio
        });
        said.next().or(own)
    }

    /// The image processor in the checkpoint's files or beside its vision tower, and the directory that has it.
    ///
    /// # Errors
    /// If a file is malformed, or says what has no counterpart here.
    pub fn image_processor(&self) -> anyhow::Result<Option<(ImageProcessor, &Path)>> {
        for dir in &self.processors {
            if let Some(ProcessorFile { processor, .. }) = read_processor(dir)? {
                return Ok(Some((processor, dir)));
            }
        }
        Ok(None)
    }

    /// How rectangles become squares, and who says so: LLaVA's own `config.json`, else the image processor, else what the code that
    /// wrote the checkpoint does without one.
    ///
    /// # Errors
    /// As [`OpenedCheckpoint::image_processor`].
    pub fn image_fit(&self) -> anyhow::Result<(FitMode, String)> {
        let HfConfig { architecture, original, .. } = &self.checkpoint.config;
        let anyres = match architecture {
            Architecture::Llava(config) => config.anyres.is_some(),
            _ => false,
        };
        let aspect = self.image_aspect_ratio();
        Ok(match (original, aspect.as_deref(), self.image_processor()?) {
            (true, ..) if anyres => (FitMode::Resize, "tiles of any resolution".into()),
            (true, Some("pad"), _) => {
                (FitMode::Pad, "image_aspect_ratio of its config.json".into())
            }
            (_, _, Some((processor, dir))) => {
                (processor.fit, format!("the image processor in {}", dir.display()))
            }
            // CLIP's own way, which LLaVA's code follows where nothing else is said.
            (true, ..) => (FitMode::CentreCrop, "it does not say pad".into()),
            (false, ..) => (FitMode::Pad, "it has no image processor".into()),
        })
    }

    /// A line on everything that is not as a reader of the files might think.
    pub fn notes(&self) -> Vec<String> {
        let adapter = self.checkpoint.adapter();
        let folded = adapter.filter(|adapter| adapter.folded() > 0).map(|adapter| {
            format!(
                "{}: the adapters of {} layers, which have no place beside frozen weights here, are folded into those",
                adapter.path().display(),
                adapter.folded()
            )
        });
        folded.into_iter().collect()
    }
}

/// Whether a path is something that is opened as a checkpoint: a whole one, an adapter or parts that belong on one, or a file.
pub fn is_checkpoint(path: &Path) -> bool {
    path.is_file() || path.join("config.json").is_file() || Adapter::is_at(path) || has_parts(path)
}

/// What a directory holds.
enum Kind {
    /// Weights of a whole model, or at least nothing else.
    Whole,
    /// An adapter, with what LLaVA's trainer leaves beside it.
    Adapter,
    /// Parts alone: what LLaVA's stage 1 leaves.
    Parts,
}

impl Kind {
    fn of(dir: &Path) -> Self {
        if has_weights(dir) {
            Self::Whole
        } else if Adapter::is_at(dir) {
            Self::Adapter
        } else if has_parts(dir) {
            Self::Parts
        } else {
            Self::Whole
        }
    }
}

/// The directory of the model that `dir` belongs on: a path from it, from the working directory, or a name on the hub.
fn base_model(
    dir: &Path,
    name: Option<&str>,
    flag: &str,
    progress: bool,
) -> anyhow::Result<PathBuf> {
    let advice = format!(
        "give the base model itself (--model, or --init-from of train) and this with {flag} {}",
        dir.display()
    );
    let name = name.filter(|name| !name.is_empty());
    let name = name.with_context(|| format!("{} names no base model; {advice}", dir.display()))?;
    let here = [dir.join(name), PathBuf::from(name)].into_iter().find(|path| path.is_dir());
    match here {
        Some(path) => Ok(path),
        None => hub::find(name, progress).with_context(|| {
            format!(
                "the base model {name:?} of {} is no directory here and not in the hub's cache; {advice}",
                dir.display()
            )
        }),
    }
}
