//! Times of single operations.

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Distribution, Tensor};
use dualspeed_ops::Backend;

use crate::bench::filter::Filter;
use crate::bench::rows::{OpRow, Row, Sink};
use crate::bench::timing::BlockTimer;

/// Times operations on random inputs and hands the measurements on.
pub(super) struct OpTimer<'a, B: Backend> {
    pub(super) device: &'a B::Device,
    pub(super) dtype: DType,
    pub(super) block_timer: BlockTimer,
    pub(super) filter: &'a Filter,
    pub(super) sink: Sink<'a>,
    pub(super) rows: usize,
    pub(super) left_out: Vec<String>,
}

impl<B: Backend> OpTimer<'_, B> {
    /// Standard normal values in the type of weights and activations.
    pub(super) fn random<const D: usize>(&self, shape: [usize; D]) -> FloatTensor<B> {
        self.random_as(shape, self.dtype)
    }

    /// Standard normal values in the type `dtype`.
    pub(super) fn random_as<const D: usize>(
        &self,
        shape: [usize; D],
        dtype: DType,
    ) -> FloatTensor<B> {
        let normal = Distribution::Normal(0.0, 1.0);
        Tensor::<B, D>::random(shape, normal, (self.device, dtype)).into_primitive().tensor()
    }

    /// A view `[b, h, s, d]` of `[b, s, h, d]`, as a model's heads are.
    pub(super) fn heads(&self, [b, h, s, d]: [usize; 4]) -> FloatTensor<B> {
        B::float_swap_dims(self.random([b, s, h, d]), 1, 2)
    }

    /// Times calls that are sent eight at a time, as a decoder block sends its operations. `flops` are those of one call, 0
    /// where memory is what limits it.
    pub(super) fn time<R>(
        &mut self,
        name: &str,
        flops: f64,
        mut call: impl FnMut() -> R,
    ) -> anyhow::Result<()> {
        self.measure(name, flops, |calls| {
            for start in (0..calls).step_by(8) {
                B::batched(|| (start..calls.min(start + 8)).for_each(|_| drop(call())));
            }
        })
    }

    /// Times calls that are sent one by one, for those that are more than an operation. `flops` are those of one call, 0
    /// where memory is what limits it.
    pub(super) fn time_apart<R>(
        &mut self,
        name: &str,
        flops: f64,
        mut call: impl FnMut() -> R,
    ) -> anyhow::Result<()> {
        self.measure(name, flops, |calls| (0..calls).for_each(|_| drop(call())))
    }

    fn measure(&mut self, name: &str, flops: f64, run: impl FnMut(usize)) -> anyhow::Result<()> {
        if !self.filter.wants(name) {
            self.left_out.push(name.to_string());
            return Ok(());
        }
        let time = self.block_timer.time::<B>(self.device, run)?;
        self.rows += 1;
        (self.sink)(Row::Op(OpRow {
            name: name.to_string(),
            ms: time.ms,
            spread_ms: time.spread_ms,
            tflops: (flops > 0.0).then(|| flops / time.ms / 1e9),
            first_ms: time.first_ms,
        }))
    }
}
