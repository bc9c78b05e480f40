//! A small convolutional vision tower, trained with the rest of the model.

use dualspeed::burn::tensor::activation::gelu;
use dualspeed::burn::tensor::module::conv2d;
use dualspeed::burn::tensor::ops::ConvOptions;
use dualspeed::prelude::*;

/// A convolution over patches that do not overlap, and one of 3 x 3 over their neighbours, added to it.
#[derive(Debug)]
pub struct PatchTower {
    /// Pixels along a side of a patch.
    patch: usize,
    hidden_size: usize,
}

impl PatchTower {
    /// From a configuration; a patch has `image_size / grid` pixels a side. No options.
    pub fn new(config: &CustomVisionConfig) -> Result<Self, MakerError> {
        config.options.expect(&[])?;
        let (image_size, grid) = (config.image_size, config.grid);
        if !image_size.is_multiple_of(grid) {
            return Err(format!("{image_size} pixels do not make {grid} equal patches").into());
        }
        Ok(Self { patch: image_size / grid, hidden_size: config.hidden_size })
    }
}

impl<B: Backend> TowerFactory<B> for PatchTower {
    fn init(&self, init: &Init<'_, B>) -> ParamMap<B> {
        let Self { patch, hidden_size: d } = *self;
        let layer = |params: ParamMap<B>, name: &str, d_in: usize, k: usize| {
            let (weight, bias) = (format!("{name}.weight"), format!("{name}.bias"));
            let kernel =
                init.at(&weight).normal([d, d_in, k, k], ((d_in * k * k) as f64).powf(-0.5));
            let zeros = init.at(&bias).constant([d], 0.0);
            params.with_kernel(weight, kernel).with_vector(bias, zeros)
        };
        layer(layer(ParamMap::new(), "patch_embedding", 3, patch), "neighbours", d, 3)
    }

    fn features(
        &self,
        params: &ParamMap<B>,
        pixel_values: Tensor<B, 4>,
        _needs: &Needs,
    ) -> VisionFeatures<B> {
        let conv = |x, name: &str, stride, padding| {
            let kernel = params.kernel(&format!("{name}.weight")).expect("made by init");
            let options = ConvOptions::new([stride; 2], [padding; 2], [1; 2], 1);
            conv2d(x, kernel, params.vector(&format!("{name}.bias")), options)
        };
        let patches = conv(pixel_values, "patch_embedding", self.patch, 0); // [images, d, grid, grid]
        let hidden = patches.clone() + conv(gelu(patches), "neighbours", 1, 1);
        VisionFeatures::new(hidden.flatten::<3>(2, 3).swap_dims(1, 2)) // [images, grid * grid, d]
    }
}
