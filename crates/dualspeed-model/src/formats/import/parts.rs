//! Files of single parts of a model, as LLaVA's and DualSpeed's trainers write them.
//!
//! | file | what it holds |
//! |---|---|
//! | `mm_projector.bin` | the projector after stage 1: `model.mm_projector.0.weight` |
//! | `mode_isolator.bin` | DualSpeed's soft prompt `[l, d]`, its single key is `weight` |
//! | `non_lora_trainables.bin` | what is trained beside adapters: `base_model.model.model.mm_projector.0.weight`, `base_model.model.mode_isolator.weight` |
//! | `mode_isolator.safetensors` | the soft prompt beside a checkpoint in transformers' layout, `mode_isolator` |

use std::path::Path;

use super::error::ImportError;
use super::fill::fill_present;
use super::names::{Canonical, path_of};
use super::pickle::PickleWeights;
use super::safetensors::SafetensorsWeights;
use super::source::WeightSource;
use super::tensor::FloatType;
use crate::formats::{ISOLATOR, ISOLATOR_BIN, PROJECTOR_BIN};
use crate::vlm::Llava;
use dualspeed_ops::Backend;

/// Files of single parts that a directory may hold; of equal names the later file's count.
const PART_FILES: [&str; 4] = ["non_lora_trainables.bin", PROJECTOR_BIN, ISOLATOR_BIN, ISOLATOR];
/// The parts of a model, by the first word of their paths.
const ROOTS: [&str; 5] =
    ["vision_tower", "mm_projector", "image_newline", "mode_isolator", "language_model"];

/// Whether a directory holds files of single parts.
pub fn has_parts(dir: &Path) -> bool {
    PART_FILES.iter().any(|name| dir.join(name).is_file())
}

/// Opens a file of single parts, or all of them in a directory, by path in our model.
///
/// # Errors
/// [`ImportError`] if there are none, one is damaged, or a key is of no part of a model.
pub fn open_parts(path: &Path) -> Result<Vec<Box<dyn WeightSource>>, ImportError> {
    if !path.is_dir() {
        return Ok(vec![open_part(path)?]);
    }
    let found = PART_FILES.iter().map(|name| path.join(name)).filter(|file| file.is_file());
    let parts = found.map(|file| open_part(&file)).collect::<Result<Vec<_>, _>>()?;
    match parts.is_empty() {
        false => Ok(parts),
        true => Err(ImportError::malformed(
            path,
            format!("there are no files of single parts in it, none of {}", PART_FILES.join(", ")),
        )),
    }
}

fn open_part(path: &Path) -> Result<Box<dyn WeightSource>, ImportError> {
    let isolator = path.file_stem().is_some_and(|stem| stem == "mode_isolator");
    let name = |key: &str| match key {
        "weight" if isolator => Some("mode_isolator".to_owned()),
        key => part_path(key),
    };
    let source = Canonical::with(open_file(path)?, name)?;
    check_roots(&source)?;
    Ok(Box::new(source))
}

/// Refuses tensors that are of no part of a model.
///
/// # Errors
/// [`ImportError::Tensor`] names the first.
pub(super) fn check_roots(source: &dyn WeightSource) -> Result<(), ImportError> {
    let known = |path: &str| ROOTS.iter().any(|root| path.split('.').next() == Some(root));
    match source.tensors().iter().find(|(path, _)| !known(path)) {
        None => Ok(()),
        Some((_, info)) => {
            let problem = format!("it is of no part of a model; parts are {}", ROOTS.join(", "));
            Err(ImportError::tensor(&info.path, &info.key, problem))
        }
    }
}

/// Opens a safetensors file or, by any other ending, a pickle.
pub(super) fn open_file(path: &Path) -> Result<Box<dyn WeightSource>, ImportError> {
    if path.extension().is_some_and(|extension| extension == "safetensors") {
        Ok(Box::new(SafetensorsWeights::open(path)?))
    } else {
        Ok(Box::new(PickleWeights::open(path)?))
    }
}

/// The path of a key that PEFT or LLaVA have put names before: `base_model.model.model.mm_projector.0.weight`. A wrapped module's own
/// weights are below `base_layer`, full copies below `modules_to_save.default`.
pub(super) fn part_path(key: &str) -> Option<String> {
    if key.contains(".original_module.") {
        return None;
    }
    let bare = key.strip_prefix("base_model.model.").unwrap_or(key);
    let bare = bare.replace(".base_layer.", ".");
    path_of(&bare.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", "."))
}

/// Puts a file of single parts, or all of them in a directory, on a model.
///
/// # Errors
/// [`ImportError`] if one is damaged, or holds what the model has not.
pub fn load_parts<B: Backend>(
    model: Llava<B>,
    path: &Path,
    device: &B::Device,
) -> Result<Llava<B>, ImportError> {
    open_parts(path)?.iter().try_fold(model, |model, part| put_part(model, &**part, device))
}

/// Puts tensors, named by path in our model, on it. What is trained from the start is in full precision whatever the model is.
pub(super) fn put_part<B: Backend>(
    model: Llava<B>,
    source: &dyn WeightSource,
    device: &B::Device,
) -> Result<Llava<B>, ImportError> {
    check_roots(source)?;
    let mut model = model;
    if let Some(info) = source.tensors().get("mode_isolator") {
        // A base model has no isolator; the file's length makes one.
        let length = info.shape.first().copied().unwrap_or(0);
        if model.config.isolator_length != length {
            model = model
                .with_isolator_length(length, device, 0)
                .map_err(|error| ImportError::Model(Box::new(error)))?;
        }
    }
    let (full, own) = (Some(FloatType::F32), Some(model.config.dtype.into()));
    Ok(Llava {
        vision_tower: fill_present(model.vision_tower, "vision_tower", source, own)?,
        mm_projector: fill_present(model.mm_projector, "mm_projector", source, full)?,
        image_newline: fill_present(model.image_newline, "image_newline", source, full)?,
        mode_isolator: fill_present(model.mode_isolator, "mode_isolator", source, full)?,
        language_model: fill_present(model.language_model, "language_model", source, own)?,
        lora: model.lora,
        config: model.config,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_keys_lead_to_parts() {
        for (key, path) in [
            ("base_model.model.model.mm_projector.0.weight", "mm_projector.linear_1.weight"),
            ("model.mm_projector.2.bias", "mm_projector.linear_2.bias"),
            ("base_model.model.mode_isolator.weight", "mode_isolator"),
            ("mode_isolator.weight", "mode_isolator"),
            ("base_model.model.lm_head.weight", "language_model.lm_head.weight"),
            (
                "base_model.model.lm_head.modules_to_save.default.weight",
                "language_model.lm_head.weight",
            ),
        ] {
            assert_eq!(part_path(key).as_deref(), Some(path), "{key}");
        }
    }
}
