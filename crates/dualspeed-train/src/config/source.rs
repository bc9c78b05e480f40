//! The data sets of a run.

use std::path::PathBuf;
use std::sync::Arc;

use dualspeed_data::{
    DataError, ExampleSource, FitMode, Grouping, ImageProcessor, LlavaJson, LlavaJsonConfig,
    SceneConfig, SceneSource, SpecialTokens, Template, TextTokenizer, TileConfig,
};
use dualspeed_model::LlavaConfig;
use serde::{Deserialize, Serialize};

use super::invalid;
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
}

impl DataConfig {
    /// Threads that make batches.
    pub fn worker_count(&self) -> usize {
        self.workers.unwrap_or(1).max(1)
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        self.train.validate("data.train")?;
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
        let image_size = model.vision.image_size;
        if let Some(section) = &self.llava_json {
            let config = LlavaJsonConfig {
                image_root: section.image_root.clone(),
                template: section.template,
                system: section.system.clone(),
                max_length: None,
                processor: ImageProcessor::clip(image_size, section.fit),
                tiles: model.anyres.as_ref().map(|anyres| TileConfig {
                    pinpoints: anyres.image_grid_pinpoints.clone(),
                    side: model.vision.grid(),
                }),
            };
            let tokenizer = Arc::new(
                TextTokenizer::from_file(&section.tokenizer, &SpecialTokens::default())
                    .map_err(DataError::from)?,
            );
            return Ok(Arc::new(LlavaJson::open(&section.path, config, tokenizer)?));
        }
        let config = SceneConfig { image_size, ..self.scenes.clone().unwrap_or_default() };
        Ok(Arc::new(SceneSource::new(config, self.samples.unwrap_or(DEFAULT_SCENES))?))
    }

    fn validate(&self, key: &str) -> Result<(), ConfigError> {
        if self.scenes.is_some() && self.llava_json.is_some() {
            let advice = "keep one of the two sections";
            return Err(invalid(key, "{..}", "both `scenes` and `llava_json` are given", advice));
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
