//! A vision tower and a projector as another crate would bring them.

use burn::tensor::Tensor;
use dualspeed_model::config::{
    CustomProjectorConfig, CustomVisionConfig, ProjectorType, VisionGeometry,
};
use dualspeed_model::projector::ProjectorRegistry;
use dualspeed_model::vision::TowerRegistry;
use dualspeed_model::vision::features::CLS_ATTENTION;
use dualspeed_model::{
    Init, Llava, LlavaConfig, Needs, ParamMap, Parts, ProjectorFactory, TowerFactory,
    VisionFeatures,
};
use dualspeed_ops::Backend;

use crate::support::{A, config, device};

/// Width of the tower's features.
pub const WIDTH: usize = 5;

/// Patches of 2 x 2 pixels, each through one matrix; `gain` is an option.
#[derive(Debug)]
pub struct Patches {
    gain: f64,
}

impl<T: Backend> TowerFactory<T> for Patches {
    fn init(&self, init: &Init<'_, T>) -> ParamMap<T> {
        ParamMap::new()
            .with_matrix("patch_embedding", init.at("patch_embedding").normal([12, WIDTH], 0.3))
            .with_vector("shift", init.at("shift").constant([WIDTH], 0.1))
            .with_kernel("unused", init.at("unused").constant([1, 1, 2, 2], 0.0))
    }

    fn features(
        &self,
        params: &ParamMap<T>,
        pixel_values: Tensor<T, 4>,
        needs: &Needs,
    ) -> VisionFeatures<T> {
        let images = pixel_values.dims()[0];
        let patches = pixel_values
            .reshape([images, 3, 8, 2, 8, 2])
            .permute([0, 2, 4, 1, 3, 5])
            .reshape([images * 64, 12]);
        let matrix = params.matrix("patch_embedding").expect("made by init");
        let shift = params.vector("shift").expect("made by init");
        let hidden = patches.matmul(matrix).tanh().mul_scalar(self.gain) + shift.unsqueeze();
        let hidden = hidden.reshape([images, 64, WIDTH]);
        let bright = needs.has("brightness").then(|| hidden.clone().mean_dim(2));
        let attention = needs.has(CLS_ATTENTION).then(|| hidden.clone().abs().narrow(2, 0, 2));
        VisionFeatures::new(hidden)
            .with_some("brightness", bright)
            .with_some(CLS_ATTENTION, attention)
    }
}

/// The features of 2 x 2 neighbours side by side, through one matrix.
#[derive(Debug)]
pub struct PixelMerge;

impl<T: Backend> ProjectorFactory<T> for PixelMerge {
    fn init(&self, init: &Init<'_, T>, vision: &VisionGeometry, d: usize) -> ParamMap<T> {
        let width = 4 * vision.hidden_size;
        ParamMap::new()
            .with_matrix("merge.weight", init.at("merge.weight").normal([width, d], 0.3))
            .with_vector("merge.bias", init.at("merge.bias").constant([d], 0.0))
    }

    fn forward(&self, params: &ParamMap<T>, features: Tensor<T, 3>) -> Tensor<T, 3> {
        let [images, n, d_v] = features.dims();
        let half = n.isqrt() / 2;
        let merged = features
            .reshape([images, half, 2, half, 2, d_v])
            .permute([0, 1, 3, 2, 4, 5])
            .reshape([images * half * half, 4 * d_v]);
        let weight = params.matrix("merge.weight").expect("made by init");
        let bias = params.vector("merge.bias").expect("made by init");
        let d = weight.dims()[1];
        (merged.matmul(weight) + bias.unsqueeze()).reshape([images, half * half, d])
    }
}

pub fn parts() -> Parts {
    let towers = TowerRegistry::default().with::<A, Patches>("patches", |config| {
        config.options.expect(&["gain"]).map_err(|error| error.to_string())?;
        let gain = config.options.number("gain").map_err(|error| error.to_string())?;
        Ok(Patches { gain: gain.unwrap_or(1.0) })
    });
    let projectors = ProjectorRegistry::default().with::<A, PixelMerge>(
        "pixel_merge",
        |config: &CustomProjectorConfig| match config.merge {
            2 => Ok(PixelMerge),
            _ => Err("merges 2 x 2 features".into()),
        },
    );
    Parts { towers, projectors }
}

pub fn tower() -> CustomVisionConfig {
    CustomVisionConfig {
        kind: "patches".into(),
        image_size: 16,
        grid: 8,
        hidden_size: WIDTH,
        normalisation: None,
        options: serde_json::from_str(r#"{ "gain": 1.5 }"#).unwrap(),
    }
}

pub fn merging() -> ProjectorType {
    let (kind, options) = ("pixel_merge".into(), Default::default());
    ProjectorType::Custom(CustomProjectorConfig { kind, merge: 2, options })
}

pub fn custom() -> LlavaConfig {
    LlavaConfig { vision: tower().into(), mm_projector_type: merging(), ..config() }
}

pub fn model<T: Backend>(config: &LlavaConfig) -> Llava<T> {
    config.init_with(&parts(), &device::<T>(), 5).unwrap()
}
