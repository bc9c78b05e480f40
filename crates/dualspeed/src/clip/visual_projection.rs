//! CLIP's projection of image features into the space of its text features.

use std::path::Path;

use burn::tensor::Tensor;
use dualspeed_model::import::open_weights;
use dualspeed_model::{Freezable, Llava, Tower};
use dualspeed_ops::Backend;

/// Adds to `model` the projection of images of the CLIP checkpoint in `dir`, which LLaVA's checkpoints leave out.
///
/// # Errors
/// If the checkpoint has no projection, its width is not the vision tower's, or the vision tower is no CLIP.
pub fn with_visual_projection<B: Backend>(
    model: Llava<B>,
    dir: &Path,
    device: &B::Device,
) -> anyhow::Result<Llava<B>> {
    const KEY: &str = "visual_projection.weight";
    let source = open_weights(dir)?;
    let tensor = source.read(KEY)?;
    let width = model.config.vision.geometry().hidden_size;
    anyhow::ensure!(
        tensor.shape.len() == 2 && tensor.shape[1] == width,
        "{}: {KEY} is {:?}, the vision tower is {width} wide; give the CLIP that the tower is from",
        dir.display(),
        tensor.shape
    );
    let dtype = model.config.dtype.float();
    let weight = Tensor::<B, 2>::from_data(tensor.transposed().into_data(), device).cast(dtype);
    let mut model = model;
    let Tower::Vit(mut tower) = model.vision_tower.into_inner() else {
        anyhow::bail!("the model's vision tower is no CLIP; its features have no place for {KEY}")
    };
    tower.set_visual_projection(weight);
    model.config.vision = tower.config.clone().into();
    model.vision_tower = Freezable::frozen::<B>(tower.into());
    Ok(model)
}
