//! The models and steps on the axes of the growth curves.

use dualspeed_model::{Dtype, LlavaConfig, VitConfig, memory};

use crate::bench::model_size::ModelSize;
use crate::bench::rows::GrowthAxis;
use crate::bench::steps::STAGE_2;

/// A model and a step on an axis.
pub(super) struct GrowthPoint {
    pub(super) axis: GrowthAxis,
    pub(super) x: f64,
    pub(super) label: String,
    /// The quantities that stay the same along the axis.
    pub(super) setting: String,
    pub(super) model: LlavaConfig,
    /// Samples, tiles per sample, text tokens per sample.
    pub(super) shape: [usize; 3],
}

/// Sides of the picture, in patches, and tiles: 64 to 5760 tokens with pictures of up to 24 x 24 patches.
const TOKENS: [(usize, usize); 7] = [(8, 1), (16, 1), (24, 1), (24, 2), (24, 4), (24, 7), (24, 10)];
/// Sides of the picture, in patches, and tiles, of the tiny model.
const TINY_TOKENS: [(usize, usize); 5] = [(4, 1), (8, 1), (12, 1), (12, 2), (12, 4)];

/// All points, axis by axis, for a model of that size and precision.
pub(super) fn points(size: ModelSize, dtype: Dtype) -> Vec<GrowthPoint> {
    let tiny = size == ModelSize::Tiny;
    let base = size.config(dtype);
    let tower = size.vision();
    let mut points = Vec::new();
    let (batch, text) = if tiny { (2, 32) } else { (4, 64) };
    for &(side, tiles) in if tiny { &TINY_TOKENS[..] } else { &TOKENS[..] } {
        let image_size = side * tower.patch_size;
        let vision = VitConfig { image_size, ..tower.clone() };
        let tokens = tiles * vision.num_tokens();
        points.push(GrowthPoint {
            axis: GrowthAxis::Tokens,
            x: tokens as f64,
            label: tokens.to_string(),
            setting: format!("{}, batch {batch}, {text} text tokens", size.name()),
            model: LlavaConfig { vision: vision.into(), ..base.clone() },
            shape: [batch, tiles, text],
        });
    }
    let [batch, tiles, text] = if tiny { [4, 1, 32] } else { STAGE_2 };
    let tokens = base.num_visual_tokens();
    let shape = format!("{tokens} visual + {text} text tokens");
    for batch in [1, 2, 4, 8, 16, 32] {
        points.push(GrowthPoint {
            axis: GrowthAxis::Batch,
            x: batch as f64,
            label: batch.to_string(),
            setting: format!("{}, {shape}", size.name()),
            model: base.clone(),
            shape: [batch, tiles, text],
        });
    }
    let published = [ModelSize::Small, ModelSize::Medium, ModelSize::Llava7b, ModelSize::Llava13b];
    let models: Vec<(String, LlavaConfig)> = match tiny {
        false => published.map(|size| (size.name(), size.config(dtype))).to_vec(),
        true => [1, 2, 4, 8]
            .map(|layers| {
                let mut model = base.clone();
                model.text.num_hidden_layers = layers;
                (format!("{layers} layers"), model)
            })
            .to_vec(),
    };
    for (label, model) in models {
        let [.., decoder, _] = memory::parameters(&model);
        points.push(GrowthPoint {
            axis: GrowthAxis::Size,
            x: decoder as f64 / 1e6,
            label,
            setting: format!("batch {batch}, {shape}"),
            model,
            shape: [batch, tiles, text],
        });
    }
    points
}
