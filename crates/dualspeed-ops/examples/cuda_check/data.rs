//! Random values, rounding, tensors.

use burn::tensor::{DType, Tensor, TensorData, TensorPrimitive, bf16, f16};
use burn_autodiff::Autodiff;
use dualspeed_ops::Backend;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

pub type Flat<B> = Tensor<Autodiff<B>, 1>;

/// Normal-ish values of unit variance, rounded to `dtype`.
pub fn values(len: usize, dtype: DType, seed: u64) -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut next = || rng.random_range(-1.0..1.0_f64);
    (0..len).map(|_| rounded((next() + next() + next()) as f32, dtype)).collect()
}

pub fn rounded(value: f32, dtype: DType) -> f64 {
    match dtype {
        DType::BF16 => f64::from(bf16::from_f32(value).to_f32()),
        DType::F16 => f64::from(f16::from_f32(value).to_f32()),
        _ => f64::from(value),
    }
}

pub fn tensor<B: Backend, const D: usize>(
    values: &[f64],
    shape: [usize; D],
    dtype: DType,
) -> Tensor<B, D> {
    let data = TensorData::new(values.to_vec(), shape).convert_dtype(dtype);
    Tensor::from_data(data, (&B::Device::default(), dtype))
}

pub fn to_vec<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// `|a - b| / |b|`; infinite for anything that is not a number.
pub fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    if a.len() != b.len() || a.iter().any(|x| !x.is_finite()) {
        return f64::INFINITY;
    }
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum();
    let size: f64 = b.iter().map(|b| b * b).sum();
    (difference / size.max(1e-30)).sqrt()
}

pub fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> B::FloatTensorPrimitive {
    tensor.into_primitive().tensor()
}

pub fn wrap<B: Backend, const D: usize>(primitive: B::FloatTensorPrimitive) -> Tensor<B, D> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

pub fn flat<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, 1> {
    let len = tensor.shape().num_elements();
    tensor.reshape([len])
}
