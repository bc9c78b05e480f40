//! Random tensors, comparison, and gradients of a function of flat inputs.

use burn::tensor::{DType, Tensor, TensorData};
use burn_autodiff::Autodiff;
use dualspeed_ops::{Backend, Dropout, DropoutKeys};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// Values in `-2..2`.
pub fn values(len: usize, seed: u64) -> Vec<f64> {
    let mut rng = StdRng::seed_from_u64(seed);
    (0..len).map(|_| rng.random_range(-2.0..2.0)).collect()
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

/// Largest difference at most `tolerance * (1 + largest expected)`.
pub fn assert_close(what: &str, actual: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths");
    let scale = expected.iter().fold(1.0, |max: f64, value| max.max(1.0 + value.abs()));
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let difference = (a - e).abs();
        assert!(difference <= tolerance * scale, "{what}[{i}]: {a}, expected {e}");
    }
}

pub type Flat<B> = Tensor<Autodiff<B>, 1>;

/// Output of `f` at `inputs`, and the gradients of its product with a fixed random tensor for the tracked inputs.
pub fn run<B: Backend>(
    inputs: &[Vec<f64>],
    tracked: &[bool],
    dtype: DType,
    f: &dyn Fn(&[Flat<B>]) -> Flat<B>,
) -> (Vec<f64>, Vec<Option<Vec<f64>>>) {
    let leaves: Vec<Flat<B>> = inputs
        .iter()
        .zip(tracked)
        .map(|(input, tracked)| {
            let leaf = tensor::<Autodiff<B>, 1>(input, [input.len()], dtype);
            if *tracked { leaf.require_grad() } else { leaf }
        })
        .collect();
    let output = f(&leaves);
    let cotangent = values(output.dims()[0], 4711);
    let cotangent = tensor(&cotangent, output.dims(), dtype);
    let result = to_vec(output.clone().inner());
    if !tracked.contains(&true) {
        return (result, vec![None; inputs.len()]);
    }
    let grads = (output * cotangent).sum().backward();
    (result, leaves.iter().map(|leaf| leaf.grad(&grads).map(to_vec)).collect())
}

/// Same output and gradients from both functions.
pub fn assert_same<B: Backend>(
    what: &str,
    inputs: &[Vec<f64>],
    tolerance: f64,
    fast: &dyn Fn(&[Flat<B>]) -> Flat<B>,
    plain: &dyn Fn(&[Flat<B>]) -> Flat<B>,
) {
    let tracked = vec![true; inputs.len()];
    let (actual, actual_grads) = run::<B>(inputs, &tracked, DType::F32, fast);
    // Burn's reciprocals in f32 are good to 1e-5 only on some CPUs: there, take the reference in f64. Software Vulkan
    // drivers claim f64 and compute nonsense.
    let dtype = if B::computes_on_host() { DType::F64 } else { DType::F32 };
    let (expected, expected_grads) = run::<B>(inputs, &tracked, dtype, plain);
    assert_close(what, &actual, &expected, tolerance);
    for (i, (actual, expected)) in actual_grads.iter().zip(&expected_grads).enumerate() {
        let (Some(actual), Some(expected)) = (actual, expected) else {
            panic!("{what}: gradient {i} is missing");
        };
        assert_close(&format!("{what}, gradient {i}"), actual, expected, tolerance);
    }
    // Bit-identical when run again.
    let again = run::<B>(inputs, &tracked, DType::F32, fast);
    assert_eq!((actual, actual_grads), again, "{what}: not deterministic");
}

pub fn primitive<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> B::FloatTensorPrimitive {
    tensor.into_primitive().tensor()
}

pub fn wrap<B: Backend, const D: usize>(primitive: B::FloatTensorPrimitive) -> Tensor<B, D> {
    Tensor::from_primitive(burn::tensor::TensorPrimitive::Float(primitive))
}

pub fn flat<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Tensor<B, 1> {
    let len = tensor.shape().num_elements();
    tensor.reshape([len])
}

/// Dropout of `rows` rows that drops something of most of them.
pub fn dropout<B: Backend>(rows: usize) -> Dropout<B> {
    let keys = (0..rows as u64).map(|row| 31 * row + 5).collect();
    Dropout { keys: DropoutKeys::new(keys, &Default::default()), place: 3, p: 0.3 }
}
