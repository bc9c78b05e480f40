//! `preprocessor_config.json` (and `processor_config.json`, where newer versions of transformers put it).

use std::path::Path;

use serde_json::Value;

use super::loading::ImageLoading;
use super::processor::{FitMode, ImageProcessor};
use crate::error::{DataError, ImageProcessorError};

/// Image processor of a model's directory.
#[derive(Clone, Debug, PartialEq)]
pub struct ProcessorFile {
    /// Size, fitting, normalisation.
    pub processor: ImageProcessor,
    /// LLaVA-NeXT's `image_grid_pinpoints`, `[height, width]` in pixels: there, an image is cut into tiles.
    pub pinpoints: Option<Vec<[usize; 2]>>,
}

/// Reads the image processor of a model's directory; `None` if there is none.
///
/// # Errors
/// [`DataError`] names the file and the first value that has no counterpart here.
pub fn read_processor(dir: &Path) -> Result<Option<ProcessorFile>, DataError> {
    for name in ["preprocessor_config.json", "processor_config.json"] {
        let path = dir.join(name);
        if !path.is_file() {
            continue;
        }
        let text = std::fs::read(&path)
            .map_err(|source| DataError::Read { path: path.clone(), source })?;
        let wrong = |problem: String| {
            DataError::Processor(ImageProcessorError::File { path: path.clone(), problem })
        };
        let json: Value =
            serde_json::from_slice(&text).map_err(|error| wrong(error.to_string()))?;
        let json = match name {
            "processor_config.json" => match json.get("image_processor") {
                Some(inner) => inner,
                None => continue,
            },
            _ => &json,
        };
        return parse(json).map(Some).map_err(wrong);
    }
    Ok(None)
}

impl ProcessorFile {
    /// Writes a `preprocessor_config.json` that says the same.
    pub fn to_json(&self) -> Value {
        let ImageProcessor { size, fit, mean, std, .. } = &self.processor;
        let square = serde_json::json!({ "height": size, "width": size });
        // CLIP's class ignores `do_pad`.
        let kind = match (&self.pinpoints, fit) {
            (Some(_), _) => "LlavaNext",
            (None, FitMode::Pad) => "Llava",
            (None, FitMode::CentreCrop | FitMode::Resize) => "CLIP",
        };
        let size = match fit {
            FitMode::CentreCrop => serde_json::json!({ "shortest_edge": size }),
            FitMode::Resize | FitMode::Pad => square.clone(),
        };
        let mut json = serde_json::json!({
            "image_processor_type": format!("{kind}ImageProcessor"),
            "do_resize": true, "do_rescale": true, "do_normalize": true, "do_convert_rgb": true,
            "do_center_crop": *fit == FitMode::CentreCrop, "do_pad": *fit == FitMode::Pad,
            "size": size, "crop_size": square, "resample": 3, "rescale_factor": 1.0 / 255.0,
            "image_mean": mean, "image_std": std,
        });
        if let Some(pinpoints) = &self.pinpoints {
            json["image_grid_pinpoints"] = serde_json::json!(pinpoints);
        }
        json
    }
}

fn parse(json: &Value) -> Result<ProcessorFile, String> {
    let kind = json.get("image_processor_type").and_then(Value::as_str).unwrap_or_default();
    let next = kind.starts_with("LlavaNext") || json.get("image_grid_pinpoints").is_some();
    let flag = |field: &str, default| json.get(field).and_then(Value::as_bool).unwrap_or(default);
    for field in ["do_resize", "do_rescale", "do_normalize"] {
        if !flag(field, true) {
            return Err(format!(
                "`{field}` is false; images are always resized and normalised here"
            ));
        }
    }
    if let Some(filter) = json.get("resample").and_then(Value::as_u64)
        && filter != 3
    {
        return Err(format!("`resample` = {filter}; only 3 (bicubic) is done here"));
    }
    if let Some(factor) = json.get("rescale_factor").and_then(Value::as_f64)
        && (factor * 255.0 - 1.0).abs() > 1e-6
    {
        return Err(format!("`rescale_factor` = {factor}; only 1/255 is done here"));
    }
    let size = side(json, "size")?.ok_or("`size` is missing")?;
    let crop = side(json, "crop_size")?;
    let fit = match (next, flag("do_center_crop", true)) {
        (true, _) => FitMode::Resize,
        (false, _) if flag("do_pad", false) => FitMode::Pad,
        (false, true) => FitMode::CentreCrop,
        (false, false) => FitMode::Resize,
    };
    if fit == FitMode::CentreCrop && crop.is_some_and(|crop| crop != size) {
        return Err(format!(
            "images are resized to {size} and {} cut out; the two must be equal here",
            crop.unwrap_or_default()
        ));
    }
    let clip = ImageProcessor::clip(size, fit);
    let processor = ImageProcessor {
        mean: channels(json, "image_mean", clip.mean)?,
        std: channels(json, "image_std", clip.std)?,
        loading: ImageLoading::default(),
        ..clip
    };
    processor.validate().map_err(|error| error.to_string())?;
    let pinpoints = match json.get("image_grid_pinpoints") {
        Some(value) if next => Some(
            serde_json::from_value(value.clone())
                .map_err(|error| format!("`image_grid_pinpoints`: {error}"))?,
        ),
        _ => None,
    };
    Ok(ProcessorFile { processor, pinpoints })
}

/// A size as a number, or an object with a shortest edge, or height and width.
fn side(json: &Value, field: &str) -> Result<Option<usize>, String> {
    let Some(value) = json.get(field).filter(|value| !value.is_null()) else { return Ok(None) };
    let part = |name: &str| value.get(name).and_then(Value::as_u64);
    let side =
        match (value.as_u64().or_else(|| part("shortest_edge")), part("height"), part("width")) {
            (Some(side), ..) => side,
            (None, Some(height), Some(width)) if height == width => height,
            _ => return Err(format!("`{field}` = {value}; only squares are made here")),
        };
    usize::try_from(side).map(Some).map_err(|error| error.to_string())
}

fn channels(json: &Value, field: &str, default: [f32; 3]) -> Result<[f32; 3], String> {
    match json.get(field) {
        None | Some(Value::Null) => Ok(default),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|error| format!("`{field}` = {value}: {error}; expected three numbers")),
    }
}
