//! Rotary position embedding.

use burn::tensor::Tensor;
use burn::tensor::TensorMetadata;
use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;

use super::{cast, primitive, tensor, widen};

/// Default body of [`Backend::fused_rope`](crate::Backend::fused_rope).
pub fn rope<B: Backend>(
    x: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
) -> FloatTensor<B> {
    let dtype = x.dtype();
    let x = widen(tensor::<B, 4>(x));
    let cos = widen(tensor::<B, 3>(cos)).unsqueeze_dim::<4>(1); // [1 or b, 1, s, d/2]
    let sin = widen(tensor::<B, 3>(sin)).unsqueeze_dim::<4>(1);
    let half = x.dims()[3] / 2;
    let left = x.clone().narrow(3, 0, half);
    let right = x.narrow(3, half, half);
    let rotated = Tensor::cat(
        vec![left.clone() * cos.clone() - right.clone() * sin.clone(), right * cos + left * sin],
        3,
    );
    primitive(cast(rotated, dtype))
}
