//! From host batches to what the model takes: pixels or cached features on the device.

use dualspeed_data::HostBatch;
use dualspeed_model::{Inputs, Llava, Needs};
use dualspeed_ops::Backend;

use crate::error::TrainError;
use crate::features::{FeatureCache, pixel_values};

/// A batch as the model takes it: its images' features are rows of the cache, or go through the tower now.
///
/// # Errors
/// An image that is not in the cache and has no pixels; pixels that do not fit the tower.
pub(crate) fn inputs<'a, B: Backend>(
    model: &Llava<B>,
    features: Option<&FeatureCache>,
    batch: &'a HostBatch,
    needs: &Needs,
    device: &B::Device,
) -> Result<Inputs<'a, B>, TrainError> {
    if batch.images.is_empty() {
        return Ok(Inputs::new(batch, None));
    }
    let missing = || TrainError::FeatureMissing { sample: batch.sample_ids.join(", ") };
    if let Some(cache) = features {
        let features = cache.features(&batch.images, needs, device).ok_or_else(missing)?;
        return Ok(Inputs::new(batch, Some(features)));
    }
    let size = batch.images.first().map_or(0, |image| image.size);
    if batch.images.iter().any(|image| image.pixels.len() != 3 * size * size) {
        return Err(missing());
    }
    let features = model.encode(pixel_values(&batch.images, device), needs)?;
    Ok(Inputs::new(batch, Some(features)))
}
