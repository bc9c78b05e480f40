//! AdamW over all tensors of a model in three launches, the clip of the global norm included.

use burn::tensor::DType;

use super::gpu::{flush, submit_all};
use super::kernel::{Arg, Grid, Source};
use super::tensor::{Tensor, cast, contiguous, copied, dims, empty, empty_like, reshaped, served};
use crate::Backend;
use crate::types::*;

static ADAMW: Source = Source {
    name: "adamw",
    text: concat!(include_str!("kernels/prelude.cu"), include_str!("kernels/adamw.cu")),
};

/// Elements that one block updates.
const CHUNK: usize = 8192;

/// Size of `struct Tensor` in the table.
const ENTRY: usize = 56;

/// A moment that may be written: without gaps, and nobody else's.
fn own(tensor: Tensor) -> Tensor {
    let tensor = contiguous(tensor);
    if tensor.can_mut() { tensor } else { copied(&tensor) }
}

/// Where a parameter is read and where it is written: models are shared, so mostly these differ.
fn places(param: Tensor) -> [Tensor; 2] {
    let param = contiguous(param);
    let to = if param.can_mut() { param.clone() } else { empty_like(&param) };
    [param, to]
}

/// Sizes and constants of one tensor.
struct Entry {
    len: usize,
    step_size: f32,
    keep: f32,
    updates: u64,
}

/// Moments are updated where they lie, parameters too where nobody else has them.
pub(super) fn adamw<B: Backend<FloatTensorPrimitive = Tensor>>(
    tensors: Vec<AdamWTensor<B>>,
    config: AdamWConfig,
) -> Result<AdamWOutput<B>, Vec<AdamWTensor<B>>> {
    let fits = tensors.iter().all(|t| {
        let all = [&t.param, &t.grad, &t.m, &t.v];
        served(&all).is_some() && [&t.param, &t.m, &t.v].iter().all(|x| x.dtype == DType::F32)
    });
    if !fits || tensors.is_empty() {
        return Err(tensors);
    }
    let mut entries = Vec::with_capacity(tensors.len());
    let mut updated = Vec::with_capacity(tensors.len());
    let mut sources = Vec::with_capacity(tensors.len());
    for AdamWTensor { param, grad, m, v, lr, updates } in tensors {
        let (step_size, _) = config.corrections(lr, updates);
        entries.push(Entry {
            len: dims(&param).iter().product(),
            step_size: step_size as f32,
            keep: (1.0 - lr * config.weight_decay) as f32,
            updates,
        });
        let [from, to] = places(param);
        sources.push([from, contiguous(cast(grad, DType::F32))]);
        updated.push([to, own(m), own(v)]);
    }
    // Tensors that were updated equally often share a launch.
    let mut order: Vec<usize> = (0..entries.len()).collect();
    order.sort_by_key(|index| entries[*index].updates);
    let mut chunks: Vec<u8> = Vec::new();
    let mut launches: Vec<(u64, usize, usize)> = Vec::new(); // updates, first chunk, chunks
    for index in order {
        let entry = &entries[index];
        for chunk in 0..entry.len.div_ceil(CHUNK) {
            let first = chunks.len() / 8;
            match launches.last_mut() {
                Some((updates, _, count)) if *updates == entry.updates => *count += 1,
                _ => launches.push((entry.updates, first, 1)),
            }
            chunks.extend((index as i32).to_le_bytes());
            chunks.extend((chunk as i32).to_le_bytes());
        }
    }
    let count = chunks.len() / 8;
    let Some([like, _]) = sources.first() else { return Err(Vec::new()) };
    // Bytes and floats of the tables and sums, in one piece of memory each.
    let table = empty(like, &[entries.len() * ENTRY + chunks.len()], DType::U8);
    let partial = empty(like, &[count], DType::F32);
    let norm = empty(like, &[2], DType::F32);
    let mut operands: Vec<&Tensor> = vec![&table, &partial, &norm];
    for ([from, grad], [to, m, v]) in sources.iter().zip(&updated) {
        operands.extend([from, to, grad, m, v]);
    }
    submit_all(&operands, move |gpu, addresses| {
        let [table, partial, norm, tensors @ ..] = addresses else { return Ok(()) };
        let mut bytes: Vec<u8> = Vec::with_capacity(entries.len() * ENTRY + chunks.len());
        for (entry, addresses) in entries.iter().zip(tensors.chunks_exact(5)) {
            addresses.iter().for_each(|address| bytes.extend(address.to_le_bytes()));
            bytes.extend((entry.len as u64).to_le_bytes());
            bytes.extend(entry.step_size.to_le_bytes());
            bytes.extend(entry.keep.to_le_bytes());
        }
        let chunk_table = table + bytes.len() as u64;
        bytes.extend(&chunks);
        gpu.upload(*table, &bytes)?;
        use Arg::{Address, Float, Long};
        let args = [*table, chunk_table, *partial].map(Address);
        gpu.launch(&ADAMW, "", "adamw_squares", Grid::new(count, 256), &args)?;
        let args = [
            Address(*partial),
            Long(count),
            Float(config.grad_scale),
            Float(config.max_grad_norm),
            Address(*norm),
        ];
        gpu.launch(&ADAMW, "", "adamw_norm", Grid::new(1, 1024), &args)?;
        for (updates, first, count) in launches {
            let (_, root) = config.corrections(0.0, updates);
            let chunks = chunk_table + (first * 8) as u64;
            let mut args = [*table, chunks, *norm].map(Address).to_vec();
            let (beta1, beta2) = (config.beta1, config.beta2);
            args.extend([beta1, beta2, 1.0 - beta1, 1.0 - beta2, config.eps, root].map(Float));
            gpu.launch(&ADAMW, "", "adamw_step", Grid::new(count, 256), &args)?;
        }
        Ok(())
    });
    flush();
    let norm = B::float_slice(norm, &[burn::tensor::Slice::from(0..1)]);
    Ok(AdamWOutput { updated, norm: reshaped(contiguous(norm), &[1]) })
}
