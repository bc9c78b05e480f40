//! A projector that makes one token of a square of features: fewer visual tokens before any pruning.

use dualspeed::prelude::*;

/// The features of `merge x merge` neighbours side by side, through one linear layer.
#[derive(Debug)]
pub struct PixelShuffle {
    merge: usize,
}

impl PixelShuffle {
    /// From a configuration with `merge`. No options.
    pub fn new(config: &CustomProjectorConfig) -> Result<Self, MakerError> {
        config.options.expect(&[])?;
        Ok(Self { merge: config.merge })
    }
}

impl<B: Backend> ProjectorFactory<B> for PixelShuffle {
    fn init(&self, init: &Init<'_, B>, vision: &VisionGeometry, d: usize) -> ParamMap<B> {
        let d_in = self.merge * self.merge * vision.hidden_size;
        let weight = init.at("weight").normal([d_in, d], (d_in as f64).powf(-0.5));
        ParamMap::new()
            .with_matrix("weight", weight)
            .with_vector("bias", init.at("bias").constant([d], 0.0))
    }

    fn forward(&self, params: &ParamMap<B>, features: Tensor<B, 3>) -> Tensor<B, 3> {
        let [images, n, d_v] = features.dims();
        let (m, side) = (self.merge, n.isqrt() / self.merge);
        let squares = features
            .reshape([images, side, m, side, m, d_v])
            .permute([0, 1, 3, 2, 4, 5])
            .reshape([images, side * side, m * m * d_v]);
        let weight = params.matrix("weight").expect("made by init");
        let bias = params.vector("bias").expect("made by init");
        squares.matmul(weight.unsqueeze::<3>()) + bias.unsqueeze::<3>() // [images, n / merge^2, d]
    }
}
