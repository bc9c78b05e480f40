//! The weights of a directory, whichever way they are kept.

use std::path::Path;

use super::error::ImportError;
use super::pickle::PickleWeights;
use super::safetensors::{INDEX, SINGLE, SafetensorsWeights};
use super::source::WeightSource;

/// PyTorch's name of the single pickle.
const PICKLE: &str = "pytorch_model.bin";
/// PyTorch's name of the list of pickles.
const PICKLE_INDEX: &str = "pytorch_model.bin.index.json";

/// Whether a directory holds weights of a whole model, whichever way they are kept.
pub fn has_weights(dir: &Path) -> bool {
    [INDEX, SINGLE, PICKLE_INDEX, PICKLE].iter().any(|name| dir.join(name).is_file())
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
