//! A checkpoint directory: configuration, weights, and the models they make.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use burn::module::Module;
use burn::tensor::DType;
use dualspeed_ops::Backend;

use super::config::{Architecture, HfConfig, read_config};
use super::error::ImportError;
use super::fill::{KeyLedger, Loaded, fill};
use super::names::Canonical;
use super::pickle::PickleWeights;
use super::safetensors::{INDEX, SINGLE, SafetensorsWeights};
use super::source::{Layered, WeightSource};
use super::tensor::FloatType;
use crate::config::{DecoderConfig, LlavaConfig, VisionConfig, VitConfig};
use crate::error::ModelError;
use crate::formats::{ISOLATOR, PROJECTION};
use crate::language::Decoder;
use crate::nn::Init;
use crate::vision::ClipVit;
use crate::vlm::Llava;

/// PyTorch's name of the single pickle.
const PICKLE: &str = "pytorch_model.bin";
/// PyTorch's name of the list of pickles.
const PICKLE_INDEX: &str = "pytorch_model.bin.index.json";

/// How a checkpoint is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// What the weights become; `None` keeps the precision of the file where the backend has it, else 32-bit floats.
    pub dtype: Option<FloatType>,
    /// Directory of the vision tower's own checkpoint, for LLaVA's own layout, which may leave it out.
    pub vision_tower: Option<PathBuf>,
}

/// A checkpoint whose headers have been read.
pub struct Checkpoint {
    path: PathBuf,
    /// What `config.json` says, corrected by what the weights show.
    pub config: HfConfig,
    weights: Box<dyn WeightSource>,
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
    /// Reads the configuration and the headers of the weights in a directory of transformers' or LLaVA's own layout.
    ///
    /// # Errors
    /// [`ImportError`] names the file, and the field or key.
    pub fn open(dir: &Path, options: &LoadOptions) -> Result<Self, ImportError> {
        let file = dir.join("config.json");
        if !file.is_file() {
            let problem = "this directory has no config.json, so it is no checkpoint";
            return Err(ImportError::malformed(dir, problem));
        }
        let config = read_config(&file)?;
        let weights: Box<dyn WeightSource> = Box::new(Canonical::new(open_weights(dir)?)?);
        let mut checkpoint = Self { path: dir.to_owned(), config, weights };
        checkpoint.add_vision_tower(options)?;
        // What the layouts have no place for is in files of its own.
        for name in [ISOLATOR, PROJECTION] {
            let path = dir.join(name);
            if path.is_file() {
                let own = Canonical::new(Box::new(SafetensorsWeights::open(&path)?))?;
                checkpoint.weights =
                    Box::new(Layered::new(dir, vec![checkpoint.weights, Box::new(own)]));
            }
        }
        checkpoint.settle()?;
        Ok(checkpoint)
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
        let mut checkpoint = Self { path: path.to_owned(), config, weights };
        checkpoint.settle()?;
        Ok(checkpoint)
    }

    /// Puts weights, named by path in our model, over those there are.
    ///
    /// # Errors
    /// If they change what the model is in a way it cannot be.
    pub fn overlay(mut self, weights: Box<dyn WeightSource>) -> Result<Self, ImportError> {
        self.weights = Box::new(Layered::new(self.path.clone(), vec![self.weights, weights]));
        self.settle()?;
        Ok(self)
    }

    /// The directory or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, by path in our model.
    pub fn weights(&self) -> &dyn WeightSource {
        &*self.weights
    }

    /// LLaVA's own layout may name the vision tower only.
    fn add_vision_tower(&mut self, options: &LoadOptions) -> Result<(), ImportError> {
        let Architecture::Llava(config) = &mut self.config.architecture else { return Ok(()) };
        if self.weights.tensors().keys().any(|path| path.starts_with("vision_tower.")) {
            // With its weights here, its sizes are those of the weights; config.json has none in this layout.
            if self.config.mm_vision_tower.is_some()
                && let Some(dir) = &options.vision_tower
            {
                config.vision = tower_config(dir, &config.vision)?;
            }
            return Ok(());
        }
        let beside = self.config.mm_vision_tower.as_ref().map(|name| self.path.join(name));
        let beside = beside.filter(|dir| dir.join("config.json").is_file());
        let Some(dir) = options.vision_tower.clone().or(beside) else {
            let name = self.config.mm_vision_tower.as_deref().unwrap_or("a CLIP checkpoint");
            let problem = format!(
                "the vision tower's weights are not in it; pass the directory of {name} (--vision-tower DIR)"
            );
            return Err(ImportError::malformed(&self.path, problem));
        };
        config.vision = tower_config(&dir, &config.vision)?;
        let tower = Canonical::new(open_weights(&dir)?)?;
        let own = std::mem::replace(&mut self.weights, Box::new(Layered::new("", Vec::new())));
        self.weights = Box::new(Layered::new(self.path.clone(), vec![Box::new(tower), own]));
        Ok(())
    }

    /// What only the weights tell: whether the head is tied, whether there is a projection into CLIP's shared space, how
    /// long the isolator is.
    fn settle(&mut self) -> Result<(), ImportError> {
        let tensors = self.weights.tensors();
        let shape = |path: &str| tensors.get(path).map(|info| info.shape.clone());
        let projection = shape("vision_tower.visual_projection.weight");
        let projection = projection.and_then(|shape| shape.first().copied());
        let head = tensors.contains_key("language_model.lm_head.weight");
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
    fn dtype<B: Backend>(&self, device: &B::Device, options: &LoadOptions) -> Option<FloatType> {
        let half = [DType::BF16, DType::F16].iter().all(|dtype| B::supports_dtype(device, *dtype));
        options.dtype.or((!half).then_some(FloatType::F32))
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
        let begin = Instant::now();
        let dtype = self.dtype::<B>(device, options);
        let source = &*self.weights;
        let mut ledger = KeyLedger::new(source);
        let model = match &self.config.architecture {
            Architecture::Llava(config) => {
                let own = || self.commonest_type();
                let config =
                    LlavaConfig { dtype: dtype.unwrap_or_else(own).into(), ..(**config).clone() };
                let model = build::<B>(&config, device)?;
                AnyModel::Llava(Box::new(fill_llava(model, source, &mut ledger, dtype)?))
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

    /// The decoder's configuration, if there is a decoder.
    pub fn text_config(&self) -> Option<&DecoderConfig> {
        match &self.config.architecture {
            Architecture::Llava(config) => Some(&config.text),
            Architecture::Decoder(config) => Some(config),
            Architecture::Clip(_) => None,
        }
    }
}

fn build<B: Backend>(config: &LlavaConfig, device: &B::Device) -> Result<Llava<B>, ImportError> {
    config.init::<B>(device, 0).map_err(|error| ImportError::Model(Box::new(error)))
}

fn fill_llava<B: Backend>(
    model: Llava<B>,
    source: &dyn WeightSource,
    ledger: &mut KeyLedger,
    dtype: Option<FloatType>,
) -> Result<Llava<B>, ImportError> {
    Ok(Llava {
        vision_tower: fill(model.vision_tower, "vision_tower", source, ledger, dtype)?,
        mm_projector: fill(model.mm_projector, "mm_projector", source, ledger, dtype)?,
        image_newline: fill(model.image_newline, "image_newline", source, ledger, dtype)?,
        // Trained from the start, and small: in full precision whatever the rest is.
        mode_isolator: fill(
            model.mode_isolator,
            "mode_isolator",
            source,
            ledger,
            Some(FloatType::F32),
        )?,
        language_model: fill(model.language_model, "language_model", source, ledger, dtype)?,
        lora: model.lora,
        config: model.config,
    })
}

/// Fills one part of a model from tensors named by path, all of which must be of that part.
///
/// # Errors
/// As [`Checkpoint::load`].
pub fn fill_part<B: Backend, M: Module<B>>(
    module: M,
    root: &str,
    source: &dyn WeightSource,
    dtype: Option<FloatType>,
) -> Result<M, ImportError> {
    let mut ledger = KeyLedger::new(source);
    let module = fill(module, root, source, &mut ledger, dtype)?;
    ledger.close(source)?;
    Ok(module)
}

/// Sizes of a vision tower's own checkpoint, with what LLaVA selects of it.
fn tower_config(dir: &Path, selected: &VisionConfig) -> Result<VisionConfig, ImportError> {
    let file = dir.join("config.json");
    match read_config(&file)?.architecture {
        Architecture::Clip(tower) => Ok(VisionConfig::Vit(match selected {
            VisionConfig::Vit(selected) => VitConfig {
                mm_vision_select_layer: selected.mm_vision_select_layer,
                mm_vision_select_feature: selected.mm_vision_select_feature,
                ..tower
            },
            _ => tower,
        })),
        _ => Err(ImportError::malformed(
            &file,
            "this is no vision tower; it must be a CLIP checkpoint",
        )),
    }
}

/// Opens the weights of a directory, whichever way they are kept.
///
/// # Errors
/// [`ImportError`] if there are none or a header is damaged.
pub fn open_weights(dir: &Path) -> Result<Box<dyn WeightSource>, ImportError> {
    let file = |name: &str| Some(dir.join(name)).filter(|path| path.is_file());
    if let Some(path) = file(INDEX) {
        return Ok(Box::new(SafetensorsWeights::open_index(&path)?));
    }
    if let Some(path) = file(SINGLE) {
        return Ok(Box::new(SafetensorsWeights::open(&path)?));
    }
    if let Some(path) = file(PICKLE_INDEX) {
        return Ok(Box::new(PickleWeights::open_index(&path)?));
    }
    if let Some(path) = file(PICKLE) {
        return Ok(Box::new(PickleWeights::open(&path)?));
    }
    let problem =
        format!("there are no weights: none of {INDEX}, {SINGLE}, {PICKLE_INDEX}, {PICKLE}");
    Err(ImportError::malformed(dir, problem))
}

impl From<ImportError> for ModelError {
    fn from(error: ImportError) -> Self {
        match error {
            ImportError::Model(inner) => *inner,
            other => Self::Weights { what: "checkpoint".into(), message: other.to_string() },
        }
    }
}
