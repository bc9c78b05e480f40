//! A checkpoint directory: configuration, weights, and the models they make.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::tensor::DType;
use dualspeed_ops::Backend;

use super::adapter::Adapter;
use super::config::{Architecture, HfConfig, read_config};
use super::error::ImportError;
use super::fill::{KeyLedger, Loaded, fill};
use super::names::Canonical;
use super::parts::open_parts;
use super::recognise::refuse_quantised;
use super::safetensors::SafetensorsWeights;
use super::source::{Layered, MemoryWeights, WeightSource};
use super::tensor::FloatType;
use super::tower::Find;
use super::weights::open_weights;
use crate::config::{DecoderConfig, LlavaConfig, ProjectorType, VisionConfig};
use crate::error::ModelError;
use crate::formats::{ISOLATOR, ISOLATOR_BIN, PROJECTION};
use crate::language::Decoder;
use crate::nn::Init;
use crate::vision::ClipVit;
use crate::vlm::{Llava, Parts, require_dtype};

/// How a checkpoint is loaded, and what is put on it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadOptions {
    /// What the weights become; `None` keeps the precision of the file where the backend has it, else 32-bit floats.
    pub dtype: Option<FloatType>,
    /// Directory of the vision tower's own checkpoint: LLaVA's own layout may leave it out, a language model has none.
    pub vision_tower: Option<PathBuf>,
    /// Directory of a PEFT adapter, as peft or LLaVA's trainer wrote it.
    pub adapter: Option<PathBuf>,
    /// Files of single parts, or directories of such files (LLaVA's stage 1): projector, mode isolator.
    pub parts: Vec<PathBuf>,
    /// The projector between a language model and a vision tower that have none yet: where stage 1 begins.
    pub new_projector: Option<NewProjector>,
}

/// A projector that is not trained yet.
#[derive(Clone, Debug, PartialEq)]
pub struct NewProjector {
    /// Its kind.
    pub kind: ProjectorType,
    /// The seed of its weights.
    pub seed: u64,
}

/// A checkpoint whose headers have been read.
pub struct Checkpoint {
    pub(super) path: PathBuf,
    /// What `config.json` says, corrected by what the weights show.
    pub config: HfConfig,
    /// The directory that the vision tower's weights or sizes are from, if it is one of its own.
    pub tower: Option<PathBuf>,
    pub(super) weights: Box<dyn WeightSource>,
    pub(super) adapter: Option<Adapter>,
    /// Paths that parts and adapters brought.
    pub(super) parts: BTreeSet<String>,
    /// The seed of a projector that no file has.
    pub(super) fresh_projector: Option<u64>,
}

/// A model of any kind.
#[derive(Debug)]
pub enum AnyModel<B: Backend> {
    /// Vision and language.
    Llava(Box<Llava<B>>),
    /// Language alone.
    Decoder(Box<Decoder<B>>),
    /// Vision alone.
    Clip(Box<ClipVit<B>>),
}

/// How loading went.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LoadReport {
    /// Tensors and bytes read.
    pub loaded: Loaded,
    /// How long it took.
    pub elapsed: Duration,
}

impl LoadReport {
    /// Bytes per second, in units of 10^9.
    pub fn gigabytes_per_second(&self) -> f64 {
        self.loaded.bytes as f64 / 1e9 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

impl Checkpoint {
    /// Reads the configuration and the headers of the weights in a directory of transformers' or LLaVA's own layout, and puts on it
    /// what the options name.
    ///
    /// # Errors
    /// [`ImportError`] names the file, and the field or key.
    pub fn open(dir: &Path, options: &LoadOptions) -> Result<Self, ImportError> {
        Self::open_with(dir, options, &|_| None)
    }

    /// [`Checkpoint::open`] where `find` looks for vision towers that are in no directory here.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_with(
        dir: &Path,
        options: &LoadOptions,
        find: &Find<'_>,
    ) -> Result<Self, ImportError> {
        let file = dir.join("config.json");
        if !file.is_file() {
            let problem = "this directory has no config.json, so it is no checkpoint";
            return Err(ImportError::malformed(dir, problem));
        }
        let config = read_config(&file)?;
        let weights = open_weights(dir)?;
        refuse_quantised(dir, config.quantised.as_deref(), &*weights)?;
        let mut layers: Vec<Box<dyn WeightSource>> = vec![Box::new(Canonical::new(weights)?)];
        // What the layouts have no place for is in files of its own.
        for name in [ISOLATOR_BIN, ISOLATOR] {
            let path = dir.join(name);
            if path.is_file() {
                layers.extend(open_parts(&path)?);
            }
        }
        let projection = dir.join(PROJECTION);
        if projection.is_file() {
            layers
                .push(Box::new(Canonical::new(Box::new(SafetensorsWeights::open(&projection)?))?));
        }
        Self::unsettled(dir, config, Box::new(Layered::new(dir, layers))).compose(options, find)
    }

    /// A checkpoint of parts that are at hand: an archive of another format, a test.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn from_parts(
        path: &Path,
        config: HfConfig,
        weights: Box<dyn WeightSource>,
    ) -> Result<Self, ImportError> {
        let mut checkpoint = Self::unsettled(path, config, weights);
        checkpoint.settle()?;
        Ok(checkpoint)
    }

    fn unsettled(path: &Path, config: HfConfig, weights: Box<dyn WeightSource>) -> Self {
        Self {
            path: path.to_owned(),
            config,
            tower: None,
            weights,
            adapter: None,
            parts: BTreeSet::new(),
            fresh_projector: None,
        }
    }

    /// Puts weights, named by path in our model, over those there are.
    ///
    /// # Errors
    /// If they change what the model is in a way it cannot be.
    pub fn overlay(mut self, weights: Box<dyn WeightSource>) -> Result<Self, ImportError> {
        self.add(weights);
        self.settle()?;
        Ok(self)
    }

    pub(super) fn add(&mut self, weights: Box<dyn WeightSource>) {
        let own = std::mem::replace(&mut self.weights, Box::new(MemoryWeights::default()));
        self.weights = Box::new(Layered::new(self.path.clone(), vec![own, weights]));
    }

    /// The directory or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, by path in our model; adapters that stay adapters are not among them.
    pub fn weights(&self) -> &dyn WeightSource {
        &*self.weights
    }

    /// The adapter that was put on it.
    pub fn adapter(&self) -> Option<&Adapter> {
        self.adapter.as_ref()
    }

    /// What only the weights tell: whether the head is tied, whether there is a projection into CLIP's shared space, how
    /// long the isolator is.
    pub(super) fn settle(&mut self) -> Result<(), ImportError> {
        let tensors = self.weights.tensors();
        let shape = |path: &str| tensors.get(path).map(|info| info.shape.clone());
        let projection = shape("vision_tower.visual_projection.weight");
        let projection = projection.and_then(|shape| shape.first().copied());
        let head = tensors.contains_key("language_model.lm_head.weight");
        let lora = self.adapter.as_ref().and_then(|adapter| adapter.config.clone());
        let tied = !head && self.config.tied == Some(true);
        match &mut self.config.architecture {
            Architecture::Llava(config) => {
                if let VisionConfig::Vit(vit) = &mut config.vision {
                    vit.projection_dim = projection;
                }
                config.text.tie_word_embeddings = tied;
                config.isolator_length = match shape("mode_isolator").as_deref() {
                    Some([length, _]) => *length,
                    _ => 0,
                };
                config.lora = lora;
                let valid = config.validate();
                valid.map_err(|source| ImportError::Invalid { path: self.path.clone(), source })
            }
            Architecture::Decoder(config) => {
                config.tie_word_embeddings = tied;
                Ok(())
            }
            Architecture::Clip(config) => {
                config.projection_dim = projection;
                Ok(())
            }
        }
    }

    /// What most of the weights are; what is no float is found out when it is read.
    fn commonest_type(&self) -> FloatType {
        let count = |name: &str| {
            let infos = self.weights.tensors().values().filter(|info| info.dtype == name);
            infos.map(|info| info.shape.iter().product::<usize>()).sum::<usize>()
        };
        let types = [(FloatType::F32, "F32"), (FloatType::F16, "F16"), (FloatType::Bf16, "BF16")];
        let commonest = types.into_iter().max_by_key(|(_, name)| count(name));
        commonest.map_or(FloatType::F32, |(dtype, _)| dtype)
    }

    /// The element type weights get on this backend.
    ///
    /// # Errors
    /// [`ModelError::Dtype`] if one is asked for that the backend has not.
    fn dtype<B: Backend>(
        &self,
        device: &B::Device,
        options: &LoadOptions,
    ) -> Result<Option<FloatType>, ImportError> {
        if let Some(dtype) = options.dtype {
            require_dtype::<B>(dtype.into(), device).map_err(Box::new)?;
            return Ok(Some(dtype));
        }
        let half = [DType::BF16, DType::F16].iter().all(|dtype| B::supports_dtype(device, *dtype));
        Ok((!half).then_some(FloatType::F32))
    }

    /// Builds the model and fills every parameter.
    ///
    /// # Errors
    /// [`ImportError::Mismatch`] if a parameter has no tensor or a tensor no parameter; [`ImportError::Tensor`] if one
    /// has another shape, is no float, or cannot be read.
    pub fn load<B: Backend>(
        &self,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<(AnyModel<B>, LoadReport), ImportError> {
        self.load_with(&Parts::default(), options, device)
    }

    /// [`Checkpoint::load`] with vision towers of other crates.
    ///
    /// # Errors
    /// As [`Checkpoint::load`].
    pub fn load_with<B: Backend>(
        &self,
        parts: &Parts,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<(AnyModel<B>, LoadReport), ImportError> {
        let begin = Instant::now();
        let mut dtype = self.dtype::<B>(device, options)?;
        if self.adapter.as_ref().is_some_and(|adapter| adapter.folded() > 0) {
            // What is folded is in 32 bits; it becomes what the rest is.
            dtype = Some(dtype.unwrap_or_else(|| self.commonest_type()));
        }
        let source = &*self.weights;
        let mut ledger = KeyLedger::new(source);
        let model = match &self.config.architecture {
            Architecture::Llava(config) => {
                let own = || self.commonest_type();
                let config =
                    LlavaConfig { dtype: dtype.unwrap_or_else(own).into(), ..(**config).clone() };
                let seed = self.fresh_projector;
                let model = config.init_with::<B>(parts, device, seed.unwrap_or(0));
                let model = model.map_err(|error| ImportError::Model(Box::new(error)))?;
                let mut model = self.fill_llava(model, &mut ledger, dtype)?;
                if let Some(adapter) = &self.adapter {
                    model.lora = adapter.fill_lora::<B, _>(model.lora, &model.config.text)?;
                }
                AnyModel::Llava(Box::new(model))
            }
            Architecture::Decoder(config) => {
                let model = config.init::<B>(&Init::new(0, device).at("language_model"));
                AnyModel::Decoder(Box::new(fill(
                    model,
                    "language_model",
                    source,
                    &mut ledger,
                    dtype,
                )?))
            }
            Architecture::Clip(config) => {
                let model = config.init::<B>(&Init::new(0, device).at("vision_tower").frozen());
                AnyModel::Clip(Box::new(fill(model, "vision_tower", source, &mut ledger, dtype)?))
            }
        };
        let loaded = ledger.close(source)?;
        Ok((model, LoadReport { loaded, elapsed: begin.elapsed() }))
    }

    /// [`Checkpoint::load`] for callers that want vision and language.
    ///
    /// # Errors
    /// As [`Checkpoint::load`]; also if the checkpoint is of another kind.
    pub fn load_llava<B: Backend>(
        &self,
        options: &LoadOptions,
        device: &B::Device,
    ) -> Result<(Llava<B>, LoadReport), ImportError> {
        match self.load(options, device)? {
            (AnyModel::Llava(model), report) => Ok((*model, report)),
            _ => Err(ImportError::malformed(
                &self.path,
                "this is no LLaVA; it lacks one of its halves",
            )),
        }
    }

    fn fill_llava<B: Backend>(
        &self,
        model: Llava<B>,
        ledger: &mut KeyLedger,
        dtype: Option<FloatType>,
    ) -> Result<Llava<B>, ImportError> {
        let source = &*self.weights;
        // Trained from the start, and small: in full precision whatever the rest is.
        let full = Some(FloatType::F32);
        let projector = self.parts.iter().any(|path| path.starts_with("mm_projector"));
        let projector = if projector { full } else { dtype };
        let mm_projector = match self.fresh_projector {
            Some(_) => model.mm_projector,
            None => fill(model.mm_projector, "mm_projector", source, ledger, projector)?,
        };
        Ok(Llava {
            vision_tower: fill(model.vision_tower, "vision_tower", source, ledger, dtype)?,
            mm_projector,
            image_newline: fill(model.image_newline, "image_newline", source, ledger, projector)?,
            mode_isolator: fill(model.mode_isolator, "mode_isolator", source, ledger, full)?,
            language_model: fill(model.language_model, "language_model", source, ledger, dtype)?,
            lora: model.lora,
            config: model.config,
        })
    }

    /// The decoder's configuration, if there is a decoder.
    pub fn text_config(&self) -> Option<&DecoderConfig> {
        match &self.config.architecture {
            Architecture::Llava(config) => Some(&config.text),
            Architecture::Decoder(config) => Some(config),
            Architecture::Clip(_) => None,
        }
    }
}

impl From<ImportError> for ModelError {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Model(inner) => *inner,
            other => Self::Weights { what: "checkpoint".into(), message: other.to_string() },
        }
    }
}
