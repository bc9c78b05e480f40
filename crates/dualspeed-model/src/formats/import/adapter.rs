//! What fine-tuning leaves beside a base model: PEFT adapters, and files of single parts.
//!
//! | file | what it holds |
//! |---|---|
//! | `adapter_config.json`, `adapter_model.safetensors` or `.bin` | a PEFT adapter: `base_model.model.….q_proj.lora_A.weight` `[r, in]` and `lora_B` `[out, r]` |
//! | `non_lora_trainables.bin` | LLaVA's projector beside its adapters: `base_model.model.model.mm_projector.0.weight` |
//! | `mm_projector.bin` | LLaVA's projector after stage 1: `model.mm_projector.0.weight` |
//! | `mode_isolator.bin`, `mode_isolator.safetensors` | DualSpeed's soft prompt `[l, d]` |

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::checkpoint::fill_part;
use super::error::ImportError;
use super::json::Json;
use super::names::{Canonical, path_of};
use super::pickle::PickleWeights;
use super::safetensors::SafetensorsWeights;
use super::source::{MemoryWeights, WeightSource};
use super::tensor::FloatType;
use crate::config::{LoraConfig, LoraTarget};
use crate::language::Decoder;
use crate::nn::lora::Lora;
use crate::nn::{Freezable, Init};
use crate::vlm::Llava;
use dualspeed_ops::Backend;

/// The configuration of a PEFT adapter.
pub const ADAPTER_CONFIG: &str = "adapter_config.json";
/// PEFT's names of the adapter's weights.
const ADAPTER_FILES: [&str; 2] = ["adapter_model.safetensors", "adapter_model.bin"];
/// Files of single parts that may stand beside an adapter.
const EXTRA_FILES: [&str; 4] = [
    "non_lora_trainables.bin",
    "mm_projector.bin",
    "mode_isolator.bin",
    "mode_isolator.safetensors",
];

/// An adapter directory whose headers have been read.
pub struct Adapter {
    dir: PathBuf,
    /// Rank, scale, dropout, targets.
    pub config: LoraConfig,
    /// The base model, as the file names it: a directory or a name on the hub.
    pub base_model: Option<String>,
    /// The factors, by path in our model.
    factors: Box<dyn WeightSource>,
    /// Other weights in the adapter's own file (`modules_to_save`) and in the files beside it.
    extras: Vec<Box<dyn WeightSource>>,
}

impl Adapter {
    /// Whether a directory holds an adapter.
    pub fn is_at(dir: &Path) -> bool {
        dir.join(ADAPTER_CONFIG).is_file()
    }

    /// Reads an adapter's configuration and the headers of its weights.
    ///
    /// # Errors
    /// [`ImportError`] names what is missing, damaged, or of a kind of adapter that this model has not.
    pub fn open(dir: &Path) -> Result<Self, ImportError> {
        let path = dir.join(ADAPTER_CONFIG);
        let text = std::fs::read(&path).map_err(ImportError::read(&path))?;
        let json = Json::parse(&path, &text)?;
        json.require("peft_type", "LORA", "only LoRA adapters are read")?;
        json.require("bias", "none", "adapters have no biases here")?;
        for field in ["use_dora", "use_rslora", "fan_in_fan_out"] {
            if json.bool(field)? == Some(true) {
                return Err(json.refuse(field, "true", "it is not read; train with it off"));
            }
        }
        for field in ["rank_pattern", "alpha_pattern"] {
            if matches!(json.get(field), Some(Value::Object(map)) if !map.is_empty()) {
                return Err(json.refuse(
                    field,
                    "not empty",
                    "all layers have one rank and scale here",
                ));
            }
        }
        let file = ADAPTER_FILES.iter().map(|name| dir.join(name)).find(|path| path.is_file());
        let Some(file) = file else {
            let problem = format!("there is none of {}", ADAPTER_FILES.join(", "));
            return Err(ImportError::malformed(dir, problem));
        };
        let factors = Canonical::with(open_file(&file)?, factor_path)?;
        let saved = Canonical::with(open_file(&file)?, |key| match factor_path(key) {
            Some(_) => None,
            None => extra_path(key),
        })?;
        let config = LoraConfig {
            r: json.size("r", 8)?,
            alpha: json.float("lora_alpha")?.unwrap_or(8.0),
            dropout: json.float("lora_dropout")?.unwrap_or(0.0),
            targets: targets(&factors, &file)?,
        };
        config.validate().map_err(|source| json.invalid(source))?;
        let base_model = json.str("base_model_name_or_path")?.map(str::to_owned);
        let mut extras: Vec<Box<dyn WeightSource>> = Vec::new();
        if !saved.tensors().is_empty() {
            extras.push(Box::new(saved));
        }
        for name in EXTRA_FILES {
            let path = dir.join(name);
            if path.is_file() {
                extras.push(open_extra(&path)?);
            }
        }
        Ok(Self { dir: dir.to_owned(), config, base_model, factors: Box::new(factors), extras })
    }

    /// Puts the adapter, and the parts saved with it, on a base model.
    ///
    /// # Errors
    /// [`ImportError`] if the adapter does not fit the model: a factor too many, too few, or of another shape.
    pub fn apply<B: Backend>(
        &self,
        model: Llava<B>,
        device: &B::Device,
    ) -> Result<Llava<B>, ImportError> {
        let mut model = model
            .with_lora(&self.config, device, 0)
            .map_err(|error| ImportError::Model(Box::new(error)))?;
        // Trained, so in full precision whatever the base is.
        model.lora = fill_part(model.lora, "lora", &*self.factors, Some(FloatType::F32))?;
        for extra in &self.extras {
            model = apply_extra(model, &**extra, device)?;
        }
        Ok(model)
    }

    /// Folds the adapter into a decoder on its own.
    ///
    /// # Errors
    /// As [`Adapter::apply`]; also if parts of a model with vision are saved with the adapter.
    pub fn merge_into<B: Backend>(
        &self,
        decoder: Decoder<B>,
        device: &B::Device,
    ) -> Result<Decoder<B>, ImportError> {
        if let Some(info) = self.extras.iter().find_map(|extra| extra.tensors().values().next()) {
            let problem =
                "it is a part of a model with vision, which a decoder on its own has no place for";
            return Err(ImportError::tensor(&info.path, &info.key, problem));
        }
        let lora = Lora::init(&Init::new(0, device).at("lora"), &self.config, &decoder.config);
        let lora = fill_part(lora, "lora", &*self.factors, Some(FloatType::F32))?;
        Ok(decoder.merge_lora(&lora))
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.dir
    }
}

/// Puts a file of single parts (`mm_projector.bin`, `non_lora_trainables.bin`, `mode_isolator.bin`) on a model.
///
/// # Errors
/// [`ImportError`] if it is damaged, or holds what the model has not.
pub fn load_extra<B: Backend>(
    model: Llava<B>,
    path: &Path,
    device: &B::Device,
) -> Result<Llava<B>, ImportError> {
    apply_extra(model, &*open_extra(path)?, device)
}

fn apply_extra<B: Backend>(
    mut model: Llava<B>,
    source: &dyn WeightSource,
    device: &B::Device,
) -> Result<Llava<B>, ImportError> {
    let mut parts: BTreeMap<&str, BTreeMap<String, _>> = BTreeMap::new();
    for (path, info) in source.tensors() {
        let root = ["mm_projector", "mode_isolator", "image_newline"]
            .into_iter()
            .find(|root| path.starts_with(root))
            .ok_or_else(|| {
                let problem = "it belongs to no part that is saved beside adapters";
                ImportError::tensor(&info.path, &info.key, problem)
            })?;
        parts.entry(root).or_default().insert(path.clone(), source.read(path)?);
    }
    for (root, tensors) in parts {
        let length = tensors.values().next().and_then(|tensor| tensor.shape.first().copied());
        let part = MemoryWeights::new(source.path(), tensors);
        let full = Some(FloatType::F32);
        match root {
            "mm_projector" => {
                model.mm_projector = fill_part(model.mm_projector, root, &part, full)?
            }
            "image_newline" => {
                model.image_newline = fill_part(model.image_newline, root, &part, full)?;
            }
            _ => {
                // A base model has no isolator; the file's length makes one.
                let length = length.unwrap_or(0);
                if model.config.isolator_length != length {
                    model = model
                        .with_isolator_length(length, device, 0)
                        .map_err(|error| ImportError::Model(Box::new(error)))?;
                }
                model.mode_isolator =
                    fill_part::<B, Freezable<_>>(model.mode_isolator, root, &part, full)?;
            }
        }
    }
    Ok(model)
}

fn open_file(path: &Path) -> Result<Box<dyn WeightSource>, ImportError> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        Ok(Box::new(SafetensorsWeights::open(path)?))
    } else {
        Ok(Box::new(PickleWeights::open(path)?))
    }
}

/// A file of single parts, by path in our model; an isolator saved as `[1, l, d]` loses its leading 1.
fn open_extra(path: &Path) -> Result<Box<dyn WeightSource>, ImportError> {
    let source = Canonical::with(open_file(path)?, extra_path)?;
    let mut tensors = BTreeMap::new();
    for path in source.tensors().keys() {
        let mut tensor = source.read(path)?;
        if path == "mode_isolator" && tensor.shape.len() == 3 && tensor.shape[0] == 1 {
            tensor.shape.remove(0);
        }
        tensors.insert(path.clone(), tensor);
    }
    Ok(Box::new(MemoryWeights::new(path, tensors)))
}

/// Names that PEFT and LLaVA put before a model's own.
fn bare(key: &str) -> &str {
    key.strip_prefix("base_model.model.").unwrap_or(key)
}

fn extra_path(key: &str) -> Option<String> {
    path_of(bare(key))
}

/// `base_model.model.….layers.0.self_attn.q_proj.lora_A.weight` -> `lora.layers.0.q_proj.lora_a`.
fn factor_path(key: &str) -> Option<String> {
    let (module, factor) = match key.split_once(".lora_A.") {
        Some((module, _)) => (module, "lora_a"),
        None => (key.split_once(".lora_B.")?.0, "lora_b"),
    };
    let path = path_of(bare(module))?;
    // What is no decoder layer keeps its name, and is then reported as belonging to nothing.
    let Some(rest) = path.strip_prefix("language_model.layers.") else {
        return Some(format!("{path}.{factor}"));
    };
    let (layer, module) = rest.split_once('.')?;
    let (_, target) = module.rsplit_once('.')?;
    Some(format!("lora.layers.{layer}.{target}.{factor}"))
}

/// Which layers have factors; the names in the configuration may be a pattern.
fn targets(factors: &dyn WeightSource, path: &Path) -> Result<Vec<LoraTarget>, ImportError> {
    let has = |target: &LoraTarget| {
        let part = format!(".{}.lora_a", target.name());
        factors.tensors().keys().any(|path| path.ends_with(&part))
    };
    let found: Vec<_> = LoraTarget::ALL.into_iter().filter(has).collect();
    if found.is_empty() {
        let problem = "there are no LoRA factors of decoder layers in it";
        return Err(ImportError::malformed(path, problem));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_find_their_layers() {
        let expected = Some("lora.layers.3.q_proj.lora_a".to_owned());
        for base in ["model.language_model.", "language_model.model.", "model."] {
            let key = format!("base_model.model.{base}layers.3.self_attn.q_proj.lora_A.weight");
            assert_eq!(factor_path(&key), expected, "{key}");
        }
        assert_eq!(factor_path("base_model.model.model.mm_projector.0.weight"), None);
        assert_eq!(
            extra_path("base_model.model.model.mm_projector.0.weight").as_deref(),
            Some("mm_projector.linear_1.weight")
        );
        assert_eq!(extra_path("model.mode_isolator").as_deref(), Some("mode_isolator"));
    }
}
