//! AdamW over all tensors of a model in a few launches, the clip of the global norm included.

use burn::tensor::DType;

use super::cast::cast;
use super::element::Tensor;
use super::error::CudaError;
use super::gpu::Gpu;
use super::kernel::{Arg, Grid};
use super::queue::{flush, submit_all};
use super::sources::ADAMW;
use super::tensor::{contiguous, copied, dims, empty, empty_like, served};
use crate::Backend;
use crate::types::*;

/// Elements that one block updates.
const CHUNK: usize = 8192;

/// Elements from which a launch is full; a parameter and its gradient of that many are 256 MiB.
const GROUP: usize = 1 << 25;

/// Size of `struct Tensor` in the table.
const ENTRY: usize = 64;

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
    /// Where the update before was skipped.
    earlier_step_size: f32,
    keep: f32,
    updates: u64,
    undecided: bool,
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
            for number in [entry.step_size, entry.earlier_step_size, entry.keep, 0.0] {
                bytes.extend(number.to_le_bytes());
            }
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

/// What all launches of one update read: `[1]` each, f32.
struct Decision {
    norm: Tensor,
    factor: Tensor,
    applied: Tensor,
    /// The same of the update before, while it is undecided.
    before: Option<Tensor>,
}

/// Moments are updated where they lie, parameters too where nobody else has them.
pub(super) fn adamw<B: Backend<FloatTensorPrimitive = Tensor>>(
    tensors: Vec<AdamWTensor<B>>,
    guard: AdamWGuard<B>,
    config: AdamWConfig,
) -> Result<AdamWOutput<B>, (Vec<AdamWTensor<B>>, AdamWGuard<B>)> {
    let fits = tensors.iter().all(|t| {
        let all = [&t.param, &t.grad, &t.m, &t.v];
        served(&all).is_some() && [&t.param, &t.m, &t.v].iter().all(|x| x.dtype == DType::F32)
    });
    if !fits || tensors.is_empty() {
        return Err((tensors, guard));
    }
    // Where any value may overflow, all of them are computed once before one is written.
    let probed = tensors.iter().any(|tensor| !config.keeps_finite(tensor.lr));
    let pending = tensors.into_iter().enumerate().map(|(index, tensor)| {
        let AdamWTensor { param, grad, m, v, lr, updates, undecided } = tensor;
        let earlier = if undecided { updates.saturating_sub(1) } else { updates };
        let entry = Entry {
            len: dims(&param).iter().product(),
            step_size: config.corrections(lr, updates).0 as f32,
            earlier_step_size: config.corrections(lr, earlier).0 as f32,
            keep: (1.0 - lr * config.weight_decay) as f32,
            updates,
            undecided,
        };
        let grad = contiguous(cast(grad, DType::F32));
        Pending { index, entry, param, grad, moments: [m, v] }
    });
    let mut pending: Vec<Pending> = pending.collect();
    // Tensors that were updated equally often share a launch.
    pending.sort_by_key(|tensor| (tensor.entry.updates, tensor.entry.undecided));
    let decision = decide(&pending, guard, &config);
    let mut updated: Vec<(usize, [Tensor; 3])> = Vec::with_capacity(pending.len());
    let mut rest = pending.into_iter().peekable();
    let mut groups = Vec::new();
    while let Some(first) = rest.next() {
        let (key, mut len) = ((first.entry.updates, first.entry.undecided), first.entry.len);
        let mut group = vec![first];
        let fits =
            |next: &Pending, len| (next.entry.updates, next.entry.undecided) == key && len < GROUP;
        while let Some(next) = rest.next_if(|next| fits(next, len)) {
            len += next.entry.len;
            group.push(next);
        }
        let group = Group::new(group);
        if probed {
            group.launch("adamw_probe", &decision, &config);
            groups.push(group);
        } else {
            updated.extend(group.update(&decision, &config));
        }
    }
    updated.extend(groups.into_iter().flat_map(|group| group.update(&decision, &config)));
    flush();
    updated.sort_by_key(|(index, _)| *index);
    let updated = updated.into_iter().map(|(_, tensors)| tensors).collect();
    Ok(AdamWOutput { updated, norm: decision.norm, applied: decision.applied })
}

/// The norm of all gradients, the factor for them, and whether losses and norm are finite.
fn decide<B: Backend<FloatTensorPrimitive = Tensor>>(
    pending: &[Pending],
    guard: AdamWGuard<B>,
    config: &AdamWConfig,
) -> Decision {
    let like = &pending[0].grad;
    let entries = Table::new(pending.iter().map(|tensor| tensor.entry).collect());
    let table = empty(like, &[entries.size()], DType::U8);
    let partial = empty(like, &[entries.chunks], DType::F32);
    let [norm, factor, applied] = [(); 3].map(|()| empty(like, &[1], DType::F32));
    let f32s = |tensor: Tensor| contiguous(cast(tensor, DType::F32));
    let losses = guard.losses.map(f32s);
    let before = guard.before.map(f32s);
    let count = losses.as_ref().map_or(0, |losses| dims(losses).iter().product());
    let mut operands: Vec<&Tensor> = vec![&table, &partial, &norm, &factor, &applied];
    // Not looked at where there are none.
    operands.push(losses.as_ref().unwrap_or(&norm));
    operands.extend(pending.iter().map(|tensor| &tensor.grad));
    let (scale, longest) = (config.grad_scale, config.max_grad_norm);
    submit_all(&operands, move |gpu, addresses| {
        let [table, partial, norm, factor, applied, losses, grads @ ..] = addresses else {
            return Ok(());
        };
        let places: Vec<[u64; 5]> = grads.iter().map(|grad| [0, 0, *grad, 0, 0]).collect();
        let (chunks, parts) = (entries.upload(gpu, *table, &places)?, entries.chunks);
        use Arg::{Address, Float, Long};
        let args = [*table, chunks, *partial].map(Address);
        gpu.launch(&ADAMW, "", "adamw_squares", Grid::new(parts, 256), &args)?;
        let mut args = vec![Address(*partial), Long(parts), Float(scale), Float(longest)];
        args.extend([Address(*losses), Long(count)]);
        args.extend([*norm, *factor, *applied].map(Address));
        gpu.launch(&ADAMW, "", "adamw_norm", Grid::new(1, 1024), &args)
    });
    Decision { norm, factor, applied, before }
}

/// Tensors that were updated equally often.
struct Group {
    entries: Vec<Entry>,
    /// Where a parameter was, and its gradient.
    sources: Vec<[Tensor; 2]>,
    /// The place of a tensor among all, and where its parameter and moments will be.
    updated: Vec<(usize, [Tensor; 3])>,
}

impl Group {
    fn new(tensors: Vec<Pending>) -> Self {
        let entries = tensors.iter().map(|tensor| tensor.entry).collect();
        let (mut sources, mut updated) = (Vec::new(), Vec::new());
        for Pending { index, param, grad, moments: [m, v], .. } in tensors {
            let [from, to] = places(param);
            sources.push([from, grad]);
            updated.push((index, [to, own(m), own(v)]));
        }
        Self { entries, sources, updated }
    }

    /// Queues `adamw_probe` or `adamw_step`.
    fn launch(&self, kernel: &'static str, decision: &Decision, config: &AdamWConfig) {
        let entries = Table::new(self.entries.clone());
        let table = empty(&decision.norm, &[entries.size()], DType::U8);
        let Decision { norm, factor, applied, before } = decision;
        let has_before = before.is_some();
        let mut operands: Vec<&Tensor> =
            vec![&table, factor, applied, before.as_ref().unwrap_or(norm)];
        for ([from, grad], (_, [to, m, v])) in self.sources.iter().zip(&self.updated) {
            operands.extend([from, to, grad, m, v]);
        }
        let AdamWConfig { beta1, beta2, eps, .. } = *config;
        let (updates, undecided) =
            self.entries.first().map_or((1, false), |entry| (entry.updates, entry.undecided));
        let earlier = if undecided { updates.saturating_sub(1) } else { updates };
        let [root, earlier_root] =
            [updates, earlier].map(|updates| config.corrections(0.0, updates).1);
        submit_all(&operands, move |gpu, addresses| {
            let [table, factor, applied, before, tensors @ ..] = addresses else { return Ok(()) };
            let (places, _) = tensors.as_chunks::<5>();
            let chunks = entries.upload(gpu, *table, places)?;
            let pair = |low: f64, high: f64| {
                u64::from((low as f32).to_bits()) | u64::from((high as f32).to_bits()) << 32
            };
            let step = vec![
                *factor,
                if has_before { *before } else { 0 },
                pair(beta1, beta2),
                pair(1.0 - beta1, 1.0 - beta2),
                pair(eps, root),
                pair(earlier_root, 0.0),
            ];
            let [table, chunks, applied] = [*table, chunks, *applied].map(Arg::Address);
            let args = [table, chunks, Arg::Struct(step), applied];
            gpu.launch(&ADAMW, "", kernel, Grid::new(entries.chunks, 256), &args)
        });
    }

    /// Updates the tensors: their places, and parameter and moments.
    fn update(self, decision: &Decision, config: &AdamWConfig) -> Vec<(usize, [Tensor; 3])> {
        self.launch("adamw_step", decision, config);
        // Sent now: the memory of this group's gradients holds the next one's parameters.
        flush();
        self.updated
    }
}
