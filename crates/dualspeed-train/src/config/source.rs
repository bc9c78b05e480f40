//! The data sets of a run.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dualspeed_data::{
    DataError, ExampleSource, FitMode, Grouping, ImageProcessor, LlavaJson, LlavaJsonConfig,
    SceneConfig, SceneSource, SpecialTokens, Template, TextTokenizer, TileConfig,
};
use dualspeed_model::{LlavaConfig, VisionConfig};
use serde::{Deserialize, Serialize};

use super::{FeaturesConfig, invalid};
use crate::error::{ConfigError, TrainError};

/// The data sets of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataConfig {
    /// What is trained on.
    pub train: SourceConfig,
    /// What is validated on while training.
    pub valid: Option<SourceConfig>,
    /// How samples are grouped into batches.
    pub grouping: Grouping,
    /// Threads that make batches ahead of the training thread; 1 is enough for cached features.
    pub workers: Option<usize>,
    /// Whether the frozen tower's features are computed once, and where they are kept.
    pub features: FeaturesConfig,
}

impl DataConfig {
    /// Threads that make batches.
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or(1).max(1)
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.train.validate("data.train")?;
        self.features.validate()?;
        self.valid.as_ref().map_or(Ok(()), |valid| valid.validate("data.valid"))
    }
}

/// One data set: generated scenes (the default), or LLaVA's JSON format from disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SourceConfig {
    /// Number of generated scenes; left out: 8192. A file has the records it has.
    pub samples: Option<usize>,
    /// Generated scenes of the embedded drawings.
    pub scenes: Option<SceneConfig>,
    /// With generated scenes: a Hugging Face `tokenizer.json`. Left out: that of the checkpoint the run starts from, else
    /// one of the scenes' own words.
    pub tokenizer: Option<PathBuf>,
    /// Conversations from disk.
    pub llava_json: Option<LlavaJsonSection>,
}

/// Conversations from disk.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LlavaJsonSection {
    /// The `.json` or `.jsonl` file.
    pub path: PathBuf,
    /// The folder that `image` paths are relative to.
    pub image_root: PathBuf,
    /// A Hugging Face `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// How conversations are written out.
    pub template: Template,
    /// The system prompt; left out: the template's own.
    pub system: Option<String>,
    /// Whether images are padded to a square (LLaVA's `pad`) or resized to it as they are.
    pub fit: FitMode,
}

const DEFAULT_SCENES: usize = 8192;

impl SourceConfig {
    /// The scenes, when the data set is generated.
    pub fn scene_config(&self) -> Option<SceneConfig> {
        self.llava_json.is_none().then(|| self.scenes.clone().unwrap_or_default())
    }

    /// Opens the data set for a model's image size, and its tiles if it takes images of any resolution.
    ///
    /// # Errors
    /// What is wrong with the files, or with the scenes' section.
    pub fn open(&self, model: &LlavaConfig) -> Result<Arc<dyn ExampleSource>, TrainError> {
        if let Some(section) = &self.llava_json {
            let config = LlavaJsonConfig {
                image_root: section.image_root.clone(),
                template: section.template,
                system: section.system.clone(),
                max_length: None,
                processor: image_processor(&model.vision, section.fit),
                tiles: model.anyres.as_ref().map(|anyres| TileConfig {
                    pinpoints: anyres.image_grid_pinpoints.clone(),
                    side: model.vision.grid(),
                }),
            };
            let tokenizer = Arc::new(read_tokenizer(&section.tokenizer)?);
            return Ok(Arc::new(LlavaJson::open(&section.path, config, tokenizer)?));
        }
        let samples = self.samples.unwrap_or(DEFAULT_SCENES);
        Ok(Arc::new(self.open_scenes(self.scenes.clone().unwrap_or_default(), samples, model)?))
    }

    /// Generated scenes with this data set's tokenizer, for a model's vision tower.
    ///
    /// # Errors
    /// If the scenes' section is wrong, or the tokenizer cannot be read.
    pub fn open_scenes(
        &self,
        scenes: SceneConfig,
        samples: usize,
        model: &LlavaConfig,
    ) -> Result<SceneSource, TrainError> {
        let config = SceneConfig { image_size: model.vision.image_size(), ..scenes };
        let processor = image_processor(&model.vision, config.processor().mode);
        let source = SceneSource::new(config, samples)?.with_processor(processor);
        Ok(match &self.tokenizer {
            Some(path) => source.with_tokenizer(Arc::new(read_tokenizer(path)?)),
            None => source,
        })
    }

    fn validate(&self, key: &str) -> Result<(), ConfigError> {
        if self.scenes.is_some() && self.llava_json.is_some() {
            let advice = "keep one of the two sections";
            return Err(invalid(key, "{..}", "both `scenes` and `llava_json` are given", advice));
        }
        if self.tokenizer.is_some() && self.llava_json.is_some() {
            let advice = "name it in the section `llava_json`";
            let key = format!("{key}.tokenizer");
            return Err(invalid(&key, "..", "it is for generated scenes", advice));
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

/// What makes the pixels of a vision tower.
pub fn image_processor(vision: &VisionConfig, mode: FitMode) -> ImageProcessor {
    let clip = ImageProcessor::clip(vision.image_size(), mode);
    match vision.normalisation() {
        Some([mean, std]) => ImageProcessor { mean, std, ..clip },
        None => clip,
    }
}

/// A `tokenizer.json`, with the special tokens that `tokenizer_config.json` names if one lies beside it.
///
/// # Errors
/// If a file cannot be read, or a named token is not in the vocabulary.
pub fn read_tokenizer(path: &Path) -> Result<TextTokenizer, TrainError> {
    let beside = path.with_file_name("tokenizer_config.json").is_file();
    let read = match path.parent() {
        Some(dir) if beside && path.ends_with("tokenizer.json") => TextTokenizer::from_dir(dir),
        _ => TextTokenizer::from_file(path, &SpecialTokens::default()),
    };
    Ok(read.map_err(DataError::from)?)
}
