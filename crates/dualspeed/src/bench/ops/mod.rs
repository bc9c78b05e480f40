//! Single operations at a model's shapes, a decoder block with its backward pass, the vision tower.
//!
//! `benches/torch_ops.py` prints the same names for PyTorch at the shapes of LLaVA-1.5-7B.

mod linear;
mod model;
mod plain;
mod pointwise;
mod shapes;

use burn::tensor::ops::FloatTensor;
use burn::tensor::{DType, Distribution, Tensor};
use dualspeed_model::Dtype;
use dualspeed_ops::{AutodiffBackend, Backend};
use serde::{Deserialize, Serialize};

use self::shapes::Shapes;
use super::Sink;
use super::clock::Clock;
use super::model::Size;
use super::report::{Filter, Row, Suite};

/// One operation, forward or backward.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OpRow {
    /// What and at which shape; Burn's own bodies end with `plain`.
    pub name: String,
    /// Milliseconds of a call: the median of seven blocks of calls.
    pub ms: f64,
    /// Spread of the middle five blocks.
    pub spread_ms: f64,
    /// TFLOP/s, where products are what counts.
    pub tflops: Option<f64>,
    /// Milliseconds of the first call, compilation included.
    pub first_ms: f64,
}

/// What is run.
#[derive(Clone, Debug)]
pub struct OpOptions {
    /// Shapes.
    pub size: Size,
    /// Type of weights and activations; adapters and moments are f32.
    pub dtype: Dtype,
    /// Whether Burn's own bodies run as well, on a few shapes.
    pub plain: bool,
}

/// Times the operations that `filter` wants.
///
/// # Errors
/// If the device reports one, or no operation fits the filter.
pub fn run<B: AutodiffBackend>(
    options: &OpOptions,
    filter: &Filter,
    device: &B::Device,
    sink: Sink<'_>,
) -> anyhow::Result<()> {
    let config = options.size.config(options.dtype);
    let shapes = Shapes::of(options.size, &config);
    let mut bench = Ops::<B::InnerBackend> {
        device,
        dtype: options.dtype.float().into(),
        clock: Clock { block_ms: shapes.block_ms },
        filter,
        sink,
        rows: 0,
        left_out: Vec::new(),
    };
    linear::products(&mut bench, &shapes)?;
    linear::lora(&mut bench, &shapes)?;
    pointwise::attention(&mut bench, &shapes)?;
    pointwise::elementwise(&mut bench, &shapes)?;
    model::losses(&mut bench, &shapes)?;
    model::block::<B>(&mut bench, &shapes)?;
    model::divprune(&mut bench, &shapes)?;
    model::adamw(&mut bench, &shapes)?;
    model::tower(&mut bench, &shapes, &config)?;
    if options.plain {
        plain::run(&mut bench, &shapes)?;
    }
    let (rows, known) = (bench.rows, std::mem::take(&mut bench.left_out));
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    filter.ensure_some(rows, Suite::Ops, &known)
}

/// Where operations run, and what becomes of their times.
struct Ops<'a, B: Backend> {
    device: &'a B::Device,
    dtype: DType,
    clock: Clock,
    filter: &'a Filter,
    sink: Sink<'a>,
    rows: usize,
    left_out: Vec<String>,
}

impl<B: Backend> Ops<'_, B> {
    fn random<const D: usize>(&self, shape: [usize; D]) -> FloatTensor<B> {
        self.random_as(shape, self.dtype)
    }

    fn random_as<const D: usize>(&self, shape: [usize; D], dtype: DType) -> FloatTensor<B> {
        let normal = Distribution::Normal(0.0, 1.0);
        Tensor::<B, D>::random(shape, normal, (self.device, dtype)).into_primitive().tensor()
    }

    /// A view of `[b, s, h, d]`, as a model's heads are.
    fn heads(&self, [b, h, s, d]: [usize; 4]) -> FloatTensor<B> {
        B::float_swap_dims(self.random([b, s, h, d]), 1, 2)
    }

    /// `flops`: of one call, 0 where memory is what counts. Calls are sent eight at a time, as a decoder block sends its
    /// operations.
    fn time<R>(
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

    /// For calls that are more than operations of ours.
    fn time_apart<R>(
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
        let time = self.clock.time::<B>(self.device, run)?;
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
