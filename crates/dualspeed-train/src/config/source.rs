//! The data sets of a run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dualspeed_core::Options;
use dualspeed_data::{
    DataError, ExampleSource, FitMode, Grouping, ImageLoading, ImageProcessor, LlavaJson,
    LlavaJsonConfig, OnError, SceneConfig, SceneSource, SourceRegistry, SourceSpec, Template,
    TextTokenizer, TileConfig, read_tokenizer,
};
use dualspeed_model::{Compat, LlavaConfig};
use serde::{Deserialize, Serialize};

use super::{FeaturesConfig, invalid};
use crate::error::{ConfigError, TrainError};

/// The data sets of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataConfig {
    /// What is trained on.
    pub train: SourceConfig,
    /// What is validated on while training.
    pub valid: Option<SourceConfig>,
    /// How samples are grouped into batches.
    pub grouping: Grouping,
    /// What becomes of a run when a sample cannot be used: `stop` ends it, before the first step where that can be told;
    /// `skip` goes on without the sample, in every epoch, and counts and names it.
    pub on_error: OnError,
    /// With `on_error = "skip"`: that many samples in a row end the run.
    pub max_skipped: usize,
    /// Threads that make batches ahead of the training thread; 1 is enough for cached features.
    pub workers: Option<usize>,
    /// Ids of training records that were removed or corrected since the run began, where it goes on with that: a resumed run
    /// refuses every change that is not listed here.
    pub revised: Vec<String>,
    /// Whether the frozen tower's features are computed once, and where they are kept.
    pub features: FeaturesConfig,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            train: SourceConfig::default(),
            valid: None,
            grouping: Grouping::default(),
            on_error: OnError::default(),
            max_skipped: 100,
            workers: None,
            revised: Vec::new(),
            features: FeaturesConfig::default(),
        }
    }
}

impl DataConfig {
    /// Threads that make batches.
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or(1).max(1)
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.train.validate("data.train")?;
        if self.max_skipped == 0 {
            let advice = "give 1 or more, or set data.on_error = \"stop\"";
            return Err(invalid("data.max_skipped", 0, "no sample could be skipped", advice));
        }
        self.features.validate()?;
        self.valid.as_ref().map_or(Ok(()), |valid| valid.validate("data.valid"))
    }
}

/// One data set: generated scenes (the default), LLaVA's JSON format from disk, or a data set of another crate by name.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceConfig {
    /// Number of generated examples; left out: 8192 scenes, or what a data set by name makes of it. A file has the records
    /// it has.
    pub samples: Option<usize>,
    /// Generated scenes of the embedded drawings.
    pub scenes: Option<SceneConfig>,
    /// With generated scenes or a data set by name: a Hugging Face `tokenizer.json`. Left out: that of the checkpoint the
    /// run starts from, else one of the data set's own words.
    pub tokenizer: Option<PathBuf>,
    /// Conversations from disk.
    pub llava_json: Option<LlavaJsonSection>,
    /// How image files become pixels, of conversations from disk and of data sets by name: orientation, transparency, limits.
    pub images: ImageLoading,
    /// Name of a data set that the program registered.
    pub source: Option<String>,
    /// Options of the data set that `source` names.
    pub options: Option<Options>,
}

/// Conversations from disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlavaJsonSection {
    /// The `.json` or `.jsonl` file: LLaVA's or ShareGPT's `conversations`, or `messages`; see docs/data.md.
    pub path: PathBuf,
    /// The folder that `image` paths are relative to.
    pub image_root: PathBuf,
    /// A Hugging Face `tokenizer.json`, or a `tokenizer.model` of sentencepiece; left out: that of the checkpoint the run starts
    /// from.
    pub tokenizer: Option<PathBuf>,
    /// How conversations are written out: the name of a template, a `.jinja` file, or the text of a chat template as
    /// `{ jinja = ".." }`; left out: the chat template of the checkpoint the run starts from, else `qa`.
    pub template: Option<Template>,
    /// The system prompt; left out: the template's own.
    pub system: Option<String>,
    /// Whether images are padded to a square (LLaVA's `pad`) or resized to it as they are; left out: as the checkpoint the run
    /// starts from has it, else `pad`.
    pub fit: Option<FitMode>,
}

impl LlavaJsonSection {
    /// How conversations are written out.
    pub fn template(&self) -> Template {
        self.template.clone().unwrap_or_default()
    }

    /// How images become squares.
    pub fn fit(&self) -> FitMode {
        self.fit.unwrap_or_default()
    }
}

const DEFAULT_SCENES: usize = 8192;

impl SourceConfig {
    /// The section of generated scenes; `None` where the data set is another one.
    pub fn scene_config(&self) -> Option<SceneConfig> {
        let other = self.llava_json.is_some() || self.source.is_some();
        (!other).then(|| self.scenes.clone().unwrap_or_default())
    }

    /// Opens the data set for a model's image size, and its tiles if it takes images of any resolution. `sources` are the
    /// data sets that `source` may name; `seed` is the run's, and so is `compat`:
    /// whether text is tokenized as LLaVA's published code does.
    ///
    /// # Errors
    /// What is wrong with the files and all their records, the scenes' section, or the name and its options.
    pub fn open(
        &self,
        model: &LlavaConfig,
        seed: u64,
        compat: Compat,
        sources: &SourceRegistry,
    ) -> Result<Arc<dyn ExampleSource>, TrainError> {
        self.open_with(model, seed, compat, sources, OnError::Stop)
    }

    /// As [`open`](Self::open); with [`OnError::Skip`] records that cannot be used stay in the data set, as examples that
    /// cannot be made.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_with(
        &self,
        model: &LlavaConfig,
        seed: u64,
        compat: Compat,
        sources: &SourceRegistry,
        on_error: OnError,
    ) -> Result<Arc<dyn ExampleSource>, TrainError> {
        if let Some(section) = &self.llava_json {
            let config = LlavaJsonConfig {
                image_root: section.image_root.clone(),
                template: section.template(),
                system: section.system.clone(),
                max_length: None,
                processor: image_processor(model, section.fit(), self.images),
                tiles: tiles(model),
                on_error,
            };
            let tokenizer = section.tokenizer.as_deref().ok_or_else(|| {
                let advice = "name a tokenizer.json, or start from a checkpoint that has one";
                let key = "data.train.llava_json.tokenizer";
                TrainError::from(invalid(key, "none", "no tokenizer is known", advice))
            })?;
            let tokenizer = open_tokenizer(tokenizer, compat)?;
            return Ok(Arc::new(LlavaJson::open(&section.path, config, tokenizer)?));
        }
        if let Some(name) = &self.source {
            let spec = SourceSpec {
                options: self.options.clone().unwrap_or_default(),
                samples: self.samples,
                seed,
                processor: image_processor(model, FitMode::default(), self.images),
                tiles: tiles(model),
                tokenizer: self
                    .tokenizer
                    .as_deref()
                    .map(|path| open_tokenizer(path, compat))
                    .transpose()?,
            };
            return Ok(sources.build(name, &spec).map_err(DataError::from)?.into());
        }
        let samples = self.samples.unwrap_or(DEFAULT_SCENES);
        Ok(Arc::new(self.open_scenes(self.scenes.clone().unwrap_or_default(), samples, model)?))
    }

    /// Opens generated scenes with this data set's tokenizer, for a model's vision tower.
    ///
    /// # Errors
    /// If the scenes' section is wrong, or the tokenizer cannot be read.
    pub fn open_scenes(
        &self,
        scenes: SceneConfig,
        samples: usize,
        model: &LlavaConfig,
    ) -> Result<SceneSource, TrainError> {
        let config = SceneConfig { image_size: model.vision.geometry().image_size, ..scenes };
        let processor = image_processor(model, config.processor().fit, self.images);
        let source = SceneSource::new(config, samples)?.with_processor(processor);
        Ok(match &self.tokenizer {
            Some(path) => source.with_tokenizer(open_tokenizer(path, Compat::Sane)?),
            None => source,
        })
    }

    fn validate(&self, key: &str) -> Result<(), ConfigError> {
        let given = [
            ("scenes", self.scenes.is_some()),
            ("llava_json", self.llava_json.is_some()),
            ("source", self.source.is_some()),
        ];
        let given: Vec<&str> =
            given.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
        if let [first, second, ..] = given[..] {
            let problem = format!("both `{first}` and `{second}` are given");
            return Err(invalid(
                key,
                "{..}",
                problem,
                "keep one of the two: a run has one data set",
            ));
        }
        if self.options.is_some() && self.source.is_none() {
            let advice = "name the data set in `source`, or leave the options out";
            let key = format!("{key}.options");
            return Err(invalid(&key, "{..}", "they belong to a data set by name", advice));
        }
        if self.tokenizer.is_some() && self.llava_json.is_some() {
            let advice = "name it in the section `llava_json`";
            let key = format!("{key}.tokenizer");
            return Err(invalid(&key, "..", "it is for scenes and data sets by name", advice));
        }
        if self.samples == Some(0) {
            return Err(invalid(
                &format!("{key}.samples"),
                0,
                "the data set is empty",
                "give at least 1",
            ));
        }
        match &self.scenes {
            Some(scenes) => scenes.validate().map_err(|error| {
                invalid(&format!("{key}.scenes"), "{..}", error.to_string(), "correct that section")
            }),
            None => Ok(()),
        }
    }
}

/// Makes the image processor of a model's vision tower.
fn image_processor(model: &LlavaConfig, fit: FitMode, loading: ImageLoading) -> ImageProcessor {
    let vision = model.vision.geometry();
    ImageProcessor { loading, ..ImageProcessor::new(vision.image_size, fit, vision.normalisation) }
}

/// The tiles that a model takes images in; `None` where an image is one tile.
fn tiles(model: &LlavaConfig) -> Option<TileConfig> {
    model.anyres.as_ref().map(|anyres| TileConfig {
        pinpoints: anyres.image_grid_pinpoints.clone(),
        side: model.visual_grid(),
    })
}

fn open_tokenizer(path: &Path, compat: Compat) -> Result<Arc<TextTokenizer>, TrainError> {
    let tokenizer = read_tokenizer(path).map_err(DataError::from)?;
    Ok(Arc::new(tokenizer.official(compat == Compat::Official)))
}
