//! AdamW over all tensors of a model in a few launches, the clip of the global norm included.

use burn::tensor::DType;

use super::cast::cast;
use super::element::Tensor;
use super::error::CudaError;
use super::gpu::Gpu;
use super::kernel::{Arg, Grid};
use super::queue::{flush, submit_all};
use super::sources::ADAMW;
use super::tensor::{contiguous, copied, dims, empty, empty_like, reshaped, served};
use crate::Backend;
use crate::types::*;

/// Elements that one block updates.
const CHUNK: usize = 8192;

/// Elements from which a launch is full; a parameter and its gradient of that many are 256 MiB.
const GROUP: usize = 1 << 25;

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
#[derive(Clone, Copy)]
struct Entry {
    len: usize,
    step_size: f32,
    keep: f32,
    updates: u64,
}

impl Entry {
    fn chunks(&self) -> usize {
        self.len.div_ceil(CHUNK)
    }
}

/// What the kernels read: the tensors, then their chunks.
struct Table {
    entries: Vec<Entry>,
    chunks: usize,
}

impl Table {
    fn new(entries: Vec<Entry>) -> Self {
        let chunks = entries.iter().map(Entry::chunks).sum();
        Self { entries, chunks }
    }

    fn size(&self) -> usize {
        self.entries.len() * ENTRY + self.chunks * 8
    }

    /// Writes the table to the device, for tensors at addresses `[from, to, grad, m, v]`; where the chunks begin.
    fn upload(&self, gpu: &mut Gpu, table: u64, places: &[[u64; 5]]) -> Result<u64, CudaError> {
        let mut bytes: Vec<u8> = Vec::with_capacity(self.size());
        for (entry, places) in self.entries.iter().zip(places) {
            places.iter().for_each(|address| bytes.extend(address.to_le_bytes()));
            bytes.extend((entry.len as u64).to_le_bytes());
            bytes.extend(entry.step_size.to_le_bytes());
            bytes.extend(entry.keep.to_le_bytes());
        }
        let chunks = table + bytes.len() as u64;
        for (index, entry) in self.entries.iter().enumerate() {
            for chunk in 0..entry.chunks() {
                bytes.extend((index as i32).to_le_bytes());
                bytes.extend((chunk as i32).to_le_bytes());
            }
        }
        gpu.upload(table, &bytes)?;
        Ok(chunks)
    }
}

/// A tensor that is to be updated, and its place among them all.
struct Pending {
    index: usize,
    entry: Entry,
    param: Tensor,
    grad: Tensor,
    moments: [Tensor; 2],
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
    let pending = tensors.into_iter().enumerate().map(|(index, tensor)| {
        let AdamWTensor { param, grad, m, v, lr, updates } = tensor;
        let entry = Entry {
            len: dims(&param).iter().product(),
            step_size: config.corrections(lr, updates).0 as f32,
            keep: (1.0 - lr * config.weight_decay) as f32,
            updates,
        };
        let grad = contiguous(cast(grad, DType::F32));
        Pending { index, entry, param, grad, moments: [m, v] }
    });
    let mut pending: Vec<Pending> = pending.collect();
    // Tensors that were updated equally often share a launch.
    pending.sort_by_key(|tensor| tensor.entry.updates);
    let norm = norm(&pending, &config);
    let mut updated: Vec<(usize, [Tensor; 3])> = Vec::with_capacity(pending.len());
    let mut rest = pending.into_iter().peekable();
    while let Some(first) = rest.next() {
        let (updates, mut len) = (first.entry.updates, first.entry.len);
        let mut group = vec![first];
        let fits = |next: &Pending, len| next.entry.updates == updates && len < GROUP;
        while let Some(next) = rest.next_if(|next| fits(next, len)) {
            len += next.entry.len;
            group.push(next);
        }
        updated.extend(update(group, updates, &norm, &config));
    }
    flush();
    updated.sort_by_key(|(index, _)| *index);
    let updated = updated.into_iter().map(|(_, tensors)| tensors).collect();
    let norm = B::float_slice(norm, &[burn::tensor::Slice::from(0..1)]);
    Ok(AdamWOutput { updated, norm: reshaped(contiguous(norm), &[1]) })
}

/// `[2]`: the norm of all gradients, and the factor for them.
fn norm(pending: &[Pending], config: &AdamWConfig) -> Tensor {
    let like = &pending[0].grad;
    let entries = Table::new(pending.iter().map(|tensor| tensor.entry).collect());
    let table = empty(like, &[entries.size()], DType::U8);
    let partial = empty(like, &[entries.chunks], DType::F32);
    let norm = empty(like, &[2], DType::F32);
    let mut operands: Vec<&Tensor> = vec![&table, &partial, &norm];
    operands.extend(pending.iter().map(|tensor| &tensor.grad));
    let (scale, longest) = (config.grad_scale, config.max_grad_norm);
    submit_all(&operands, move |gpu, addresses| {
        let [table, partial, norm, grads @ ..] = addresses else { return Ok(()) };
        let places: Vec<[u64; 5]> = grads.iter().map(|grad| [0, 0, *grad, 0, 0]).collect();
        let (chunks, count) = (entries.upload(gpu, *table, &places)?, entries.chunks);
        use Arg::{Address, Float, Long};
        let args = [*table, chunks, *partial].map(Address);
        gpu.launch(&ADAMW, "", "adamw_squares", Grid::new(count, 256), &args)?;
        let args = [Address(*partial), Long(count), Float(scale), Float(longest), Address(*norm)];
        gpu.launch(&ADAMW, "", "adamw_norm", Grid::new(1, 1024), &args)
    });
    norm
}

/// Updates tensors that were updated equally often: their places, and parameter and moments.
fn update(
    group: Vec<Pending>,
    updates: u64,
    norm: &Tensor,
    config: &AdamWConfig,
) -> Vec<(usize, [Tensor; 3])> {
    let entries = Table::new(group.iter().map(|tensor| tensor.entry).collect());
    let table = empty(norm, &[entries.size()], DType::U8);
    let mut sources = Vec::with_capacity(group.len());
    let mut updated = Vec::with_capacity(group.len());
    for Pending { index, param, grad, moments: [m, v], .. } in group {
        let [from, to] = places(param);
        sources.push([from, grad]);
        updated.push((index, [to, own(m), own(v)]));
    }
    let mut operands: Vec<&Tensor> = vec![&table, norm];
    for ([from, grad], (_, [to, m, v])) in sources.iter().zip(&updated) {
        operands.extend([from, to, grad, m, v]);
    }
    let AdamWConfig { beta1, beta2, eps, .. } = *config;
    let (_, root) = config.corrections(0.0, updates);
    submit_all(&operands, move |gpu, addresses| {
        let [table, norm, tensors @ ..] = addresses else { return Ok(()) };
        let (places, _) = tensors.as_chunks::<5>();
        let chunks = entries.upload(gpu, *table, places)?;
        let mut args = [*table, chunks, *norm].map(Arg::Address).to_vec();
        args.extend([beta1, beta2, 1.0 - beta1, 1.0 - beta2, eps, root].map(Arg::Float));
        gpu.launch(&ADAMW, "", "adamw_step", Grid::new(entries.chunks, 256), &args)
    });
    // Sent now: the memory of this group's gradients holds the next one's parameters.
    flush();
    updated
}
