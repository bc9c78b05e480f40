//! What backends say of the host, and tensors on it.

use burn::tensor::DType;
use burn_autodiff::Autodiff;
use dualspeed_ops::*;

use crate::per_backend;
use crate::support::tensor;

per_backend!(computes_where_it_says, values_come_as_f32);

fn computes_where_it_says<B: Backend>(_: usize) {
    let name = B::name(&B::Device::default()).to_lowercase();
    let host = name.contains("ndarray") || name.contains("flex");
    assert_eq!((B::computes_on_host(), Autodiff::<B>::computes_on_host()), (host, host), "{name}");
}

/// Row-major whatever the strides; wider types are rounded.
fn values_come_as_f32<B: Backend>(_: usize) {
    let x = tensor::<B, 2>(&[0.1, -2.0, 3.5, 4.0, 5.0, 6.0], [2, 3], DType::F32);
    assert_eq!(to_f32(x.transpose()), [0.1, 4.0, -2.0, 5.0, 3.5, 6.0]);
    if B::computes_on_host() {
        assert_eq!(to_f32(tensor::<B, 1>(&[0.1, 1.0 / 3.0], [2], DType::F64)), [0.1, 1.0 / 3.0]);
    }
}
