//! A block that decodes with a cache, against the block that sees the sequence at once.

use burn::tensor::{DType, Tensor};
use burn_cuda::Cuda;
use burn_ndarray::NdArray;
use dualspeed_ops::{AttentionSpec, Backend, BlockCache, Keep, decoder_block};

use crate::block::{BATCH, Block, D};
use crate::case::{Case, Report};
use crate::data::{relative_error, tensor, to_vec, values};

/// A prompt, then one position at a time.
const PROMPT: usize = 37;

pub fn cached_blocks(report: &mut Report) {
    let everything = Block { some_rows: false, ..Block::with_everything(Keep::All) };
    for block in [Block::qwen2(Keep::All), everything] {
        let block = Block { dropout: false, ..block };
        for (dtype, tolerance) in [(DType::F32, 6e-5), (DType::BF16, 3e-2), (DType::F16, 6e-3)] {
            let name = format!("{}, cached, {dtype:?}", block.name());
            if !report.wants(&name) {
                continue;
            }
            let inputs: Vec<Vec<f64>> =
                block.inputs().iter().map(|(len, _)| values(*len, dtype, report.seed())).collect();
            let expected = at_once::<NdArray<f64>>(&block, &inputs);
            let actual = in_pieces::<Cuda<f32, i32>>(&block, &inputs, dtype);
            report.line(&name, &[relative_error(&actual, &expected)], tolerance, "");
        }
    }
}

fn leaves<B: Backend>(inputs: &[Vec<f64>], dtype: DType) -> Vec<Tensor<B, 1>> {
    inputs.iter().map(|input| tensor(input, [input.len()], dtype)).collect()
}

fn at_once<B: Backend>(block: &Block, inputs: &[Vec<f64>]) -> Vec<f64> {
    let x = leaves::<B>(inputs, DType::F64);
    let ctx = block.context(block.tables(DType::F64), AttentionSpec::causal());
    let input = x[0].clone().reshape([BATCH * block.seq, D]);
    to_vec(decoder_block(input, block.params(&x), &ctx, None))
}

fn in_pieces<B: Backend>(block: &Block, inputs: &[Vec<f64>], dtype: DType) -> Vec<f64> {
    let x = leaves::<B>(inputs, dtype);
    let mut cache = BlockCache::new();
    let pieces = std::iter::once((0, PROMPT)).chain((PROMPT..block.seq).map(|start| (start, 1)));
    let outputs = pieces.map(|(start, len)| {
        let piece = |x: Tensor<B, 3>| x.narrow(1, start, len);
        let ctx = block.context(block.tables(DType::F32).map(piece), AttentionSpec::causal());
        let input = piece(x[0].clone().reshape([BATCH, block.seq, D])).reshape([BATCH * len, D]);
        let y = decoder_block(input, block.params(&x), &ctx, Some(&mut cache));
        y.reshape([BATCH, len, D])
    });
    to_vec(Tensor::cat(outputs.collect(), 1))
}
