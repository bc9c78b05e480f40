//! Keys and values of the positions that a block has seen.

use burn::tensor::backend::Backend;
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorMetadata, TensorPrimitive};

/// The keys (rotated) and values of the positions that one decoder block has seen: what decoding token by token starts
/// from. A block that is run with a cache attends over what is in it and its own positions, which are appended.
#[derive(Clone, Debug)]
pub struct BlockCache<B: Backend> {
    /// Each `[b, h_kv, seen, d_head]`; `None` before the first position.
    past: Option<KeysValues<B>>,
}

/// Rotated keys and values of one block, each `[b, h_kv, s, d_head]`.
#[derive(Clone, Debug)]
pub(crate) struct KeysValues<B: Backend> {
    pub keys: FloatTensor<B>,
    pub values: FloatTensor<B>,
}

impl<B: Backend> Default for BlockCache<B> {
    fn default() -> Self {
        Self { past: None }
    }
}

impl<B: Backend> BlockCache<B> {
    /// An empty cache.
    pub fn new() -> Self {
        Self::default()
    }

    /// A cache of positions that were computed elsewhere.
    ///
    /// # Shapes
    /// `keys` (rotated) and `values` `[b, h_kv, seen, d_head]`.
    pub fn from_past(keys: Tensor<B, 4>, values: Tensor<B, 4>) -> Self {
        let [keys, values] = [keys, values].map(|tensor| tensor.into_primitive().tensor());
        Self { past: Some(KeysValues { keys, values }) }
    }

    /// Positions in the cache.
    pub fn seen(&self) -> usize {
        self.past.as_ref().map_or(0, |past| past.keys.shape()[2])
    }

    /// Rotated keys, and values, each `[b, h_kv, seen, d_head]`; `None` when the cache is empty.
    pub fn past(&self) -> Option<(Tensor<B, 4>, Tensor<B, 4>)> {
        let tensor = |x: &FloatTensor<B>| Tensor::new(TensorPrimitive::Float(x.clone()));
        self.past.as_ref().map(|past| (tensor(&past.keys), tensor(&past.values)))
    }

    /// Adds positions at the end; all that are in the cache then.
    pub(crate) fn append(&mut self, new: KeysValues<B>) -> KeysValues<B> {
        let all = match self.past.take() {
            Some(past) => KeysValues {
                keys: B::float_cat(vec![past.keys, new.keys], 2),
                values: B::float_cat(vec![past.values, new.values], 2),
            },
            None => new,
        };
        self.past.insert(all).clone()
    }

    /// The same on another backend that `f` takes the tensors to.
    pub(crate) fn map<C: Backend>(
        &self,
        f: impl Fn(&FloatTensor<B>) -> FloatTensor<C>,
    ) -> BlockCache<C> {
        let past = self.past.as_ref();
        let past = past.map(|past| KeysValues { keys: f(&past.keys), values: f(&past.values) });
        BlockCache { past }
    }
}
