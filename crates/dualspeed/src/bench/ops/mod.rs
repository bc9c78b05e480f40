//! Single operations at a model's shapes, a decoder block with its backward pass, the vision tower.
//!
//! `benches/torch_ops.py` prints the same names for PyTorch at the shapes of LLaVA-1.5-7B.

mod composite;
mod linear;
mod plain;
mod pointwise;
mod shapes;
mod timer;

use dualspeed_model::Dtype;
use dualspeed_ops::AutodiffBackend;

use super::filter::Filter;
use super::model_size::ModelSize;
use super::rows::Sink;
use super::suite::Suite;
use super::timing::BlockTimer;
use shapes::Shapes;
use timer::OpTimer;

/// The model whose shapes operations have, and their precision.
#[derive(Clone, Debug)]
pub struct OpOptions {
    /// The size of the model.
    pub size: ModelSize,
    /// The element type of weights and activations; adapters and moments are f32.
    pub dtype: Dtype,
    /// Whether Burn's own bodies run as well, on a few shapes.
    pub plain: bool,
}

/// Times the operations that `filter` chooses.
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
    let mut timer = OpTimer::<B::InnerBackend> {
        device,
        dtype: options.dtype.float().into(),
        block_timer: BlockTimer { block_ms: shapes.block_ms },
        filter,
        sink,
        rows: 0,
        left_out: Vec::new(),
    };
    linear::products(&mut timer, &shapes)?;
    linear::lora(&mut timer, &shapes)?;
    pointwise::attention(&mut timer, &shapes)?;
    pointwise::elementwise(&mut timer, &shapes)?;
    composite::losses(&mut timer, &shapes)?;
    composite::block::<B>(&mut timer, &shapes)?;
    composite::divprune(&mut timer, &shapes)?;
    composite::adamw(&mut timer, &shapes)?;
    composite::tower(&mut timer, &shapes, &options.size.vision(), options.dtype)?;
    if options.plain {
        plain::run(&mut timer, &shapes)?;
    }
    let (rows, known) = (timer.rows, std::mem::take(&mut timer.left_out));
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    filter.ensure_some(rows, Suite::Ops, &known)
}
