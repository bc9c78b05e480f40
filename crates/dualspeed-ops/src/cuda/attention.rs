//! Attention: `kernels/attention.cu` on tensor cores where it serves (short sequences: `kernels/attention_whole.cu`),
//! `kernels/attention_any.cu` elsewhere.

use burn::tensor::DType;
use burn_cuda::CudaDevice;

use super::elementwise::{empty_heads, heads};
use super::error::CudaError;
use super::gpu::{Gpu, submit};
use super::kernel::{Arg, Grid, Source};
use super::ready::shared_memory;
use super::tensor::{Element, Tensor, cast, contiguous, copied, dims, empty, served};
use crate::Backend;
use crate::types::*;

static FLASH: Source = Source {
    name: "attention",
    text: concat!(include_str!("kernels/prelude.cu"), include_str!("kernels/attention.cu")),
};
/// Kernels for short sequences.
static WHOLE: Source = Source {
    name: "attention_whole",
    text: concat!(
        include_str!("kernels/prelude.cu"),
        include_str!("kernels/attention.cu"),
        include_str!("kernels/attention_whole.cu")
    ),
};
/// The kernels of [`FLASH`] on the warpgroup products of Hopper.
static HOPPER: Source = Source {
    name: "attention_sm90",
    text: concat!(
        include_str!("kernels/prelude.cu"),
        include_str!("kernels/attention.cu"),
        include_str!("kernels/attention_sm90.cu")
    ),
};
static ANY: Source = Source {
    name: "attention_any",
    text: concat!(include_str!("kernels/prelude.cu"), include_str!("kernels/attention_any.cu")),
};

/// Head dims of the kernels on tensor cores.
const FLASH_DIMS: [usize; 4] = [64, 80, 96, 128];
/// Those with a version for Hopper.
const HOPPER_DIMS: [usize; 2] = [64, 128];
/// Rows of the kernels for short sequences.
const WHOLE_ROWS: [usize; 3] = [64, 96, 128];
/// The widest head of the other kernels.
const MAX_DIM: usize = 256;

/// The source for a head dim and the options it is compiled with.
fn module(arch: &str, d: usize) -> (&'static Source, String) {
    match arch == "sm_90a" && HOPPER_DIMS.contains(&d) {
        true => (&HOPPER, format!("-DHEAD_DIM={d} -DPARTS_ONLY")),
        false => (&FLASH, format!("-DHEAD_DIM={d}")),
    }
}

/// The kernels for short sequences of a head dim.
fn whole_module(d: usize) -> (&'static Source, String) {
    (&WHOLE, format!("-DHEAD_DIM={d} -DPARTS_ONLY"))
}

/// Those for the head dims of the decoder and of the vision tower.
pub(super) fn modules(arch: &str) -> Vec<(&'static Source, String)> {
    [module(arch, 128), module(arch, 64), whole_module(128)].to_vec()
}

/// `[b, h, s, d]` with any strides between rows of `d`.
struct Heads {
    tensor: Tensor,
    strides: [usize; 3],
}

impl Heads {
    fn new(tensor: Tensor) -> Self {
        let (tensor, _, strides) = heads(tensor);
        Self { tensor, strides }
    }

    /// Where 16 bytes can be read at a time, a copy otherwise.
    fn aligned(self, element: Element) -> Self {
        let lane = 16 / element.bytes();
        let start = self.tensor.handle.offset_start.unwrap_or(0);
        let fits = self.strides.iter().all(|stride| stride % lane == 0) && start.is_multiple_of(16);
        if fits {
            return self;
        }
        // A slice without gaps may still start anywhere: only a copy into new memory starts where it must.
        Self::new(copied(&self.tensor))
    }

    fn arg(&self) -> Arg {
        Arg::Struct(self.strides.map(|stride| stride as u64).to_vec())
    }
}

/// The sizes that all kernels share.
#[derive(Clone, Debug)]
struct Problem {
    element: Element,
    b: usize,
    hq: usize,
    hkv: usize,
    sq: usize,
    sk: usize,
    d: usize,
    causal: bool,
    flash: bool,
    /// How many sequences are packed into the one row, and the longest of them.
    packed: Option<(usize, usize)>,
}

impl Problem {
    fn new(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec) -> Option<Self> {
        let element = served(&[q, k, v])?;
        let ([b, hq, sq, d], [_, hkv, sk, _]) = (shape4(q)?, shape4(k)?);
        let same = k.dtype == q.dtype && v.dtype == q.dtype;
        let fits = b <= 65_535 && hq <= 65_535 && d <= MAX_DIM;
        let flash = element != Element::F32 && FLASH_DIMS.contains(&d);
        let causal = spec.causal;
        let packed = match &spec.segments {
            Some(lengths) => {
                Some((lengths.len(), lengths.iter().copied().max().filter(|max| *max > 0)?))
            }
            None => None,
        };
        (same && fits).then_some(Self { element, b, hq, hkv, sq, sk, d, causal, flash, packed })
    }

    fn heads(&self, tensor: Tensor) -> Heads {
        let heads = Heads::new(tensor);
        if self.flash { heads.aligned(self.element) } else { heads }
    }

    /// `struct Shape` of the kernels; `lengths` is the address of [`device_lengths`].
    fn shape(&self, lengths: u64) -> Arg {
        let pair = |low: usize, high: u32| low as u64 & 0xFFFF_FFFF | u64::from(high) << 32;
        let scale = (1.0 / (self.d as f64).sqrt()) as f32;
        let (b, sq, sk) = match self.packed {
            Some((sequences, longest)) => (sequences, longest, longest),
            None => (self.b, self.sq, self.sk),
        };
        let (key_lengths, starts, row) = match self.packed {
            Some(_) => (0, lengths, 0),
            None => (lengths, 0, self.hq * self.sq),
        };
        Arg::Struct(vec![
            pair(b, self.hq as u32),
            pair(self.hkv, sq as u32),
            pair(sk, u32::from(self.causal)),
            pair(scale.to_bits() as usize, 0),
            key_lengths,
            starts,
            starts,
            row as u64,
            self.sq as u64,
        ])
    }

    /// Rows of the kernels for short sequences that serve this one.
    fn whole(&self, device: &CudaDevice) -> Option<usize> {
        let (queries, keys) = match self.packed {
            Some((_, longest)) => (longest, longest),
            None => (self.sq, self.sk),
        };
        let serves = self.flash && self.hq == self.hkv && queries == keys;
        let fits = |rows: &usize| {
            queries <= *rows && *rows <= self.d && self.shared(*rows, 4) <= shared_memory(device)
        };
        WHOLE_ROWS.into_iter().find(fits).filter(|_| serves)
    }

    /// Bytes of `tiles` matrices of `rows` rows, with two numbers for each row.
    fn shared(&self, rows: usize, tiles: usize) -> usize {
        tiles * rows * (self.d + 8) * 2 + 8 * rows
    }

    /// Starts a kernel for short sequences that keeps `tiles` matrices of `rows` rows.
    fn launch_whole(
        &self,
        gpu: &mut Gpu,
        name: &str,
        rows: usize,
        tiles: usize,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        let (source, defines) = whole_module(self.d);
        let name = format!("attention_whole_{name}_{rows}_{}", self.element.suffix());
        let sequences = self.packed.map_or(self.b, |(sequences, _)| sequences);
        let shared = self.shared(rows, tiles);
        let grid = Grid { blocks: [1, self.hq, sequences], threads: 2 * rows, shared };
        gpu.launch(source, &defines, &name, grid, args)
    }

    /// Starts one of the kernels: `part` is its place in `attention_config`, `len` the length it walks over in blocks.
    fn launch(
        &self,
        gpu: &mut Gpu,
        name: &str,
        part: Option<usize>,
        [len, heads]: [usize; 2],
        mut args: Vec<Arg>,
    ) -> Result<(), CudaError> {
        let suffix = self.element.suffix();
        let (len, rows_of_grid) = match self.packed {
            Some((sequences, longest)) => (longest, sequences),
            None => (len, self.b),
        };
        if !self.flash {
            args.push(Arg::Int(self.d));
            let grid =
                Grid { blocks: [len.div_ceil(8), heads, rows_of_grid], threads: 256, shared: 0 };
            return gpu.launch(&ANY, "", &format!("attention_any_{name}_{suffix}"), grid, &args);
        }
        let (source, defines) = module(gpu.kernels.arch(), self.d);
        let [rows, threads, shared] = match part {
            Some(part) => {
                let config = gpu.kernels.constant(source, &defines, "attention_config")?;
                [0, 1, 2].map(|i| config[3 * part + i] as usize)
            }
            None => [8, 256, 0],
        };
        let grid =
            Grid { blocks: [len.div_ceil(rows.max(1)), heads, rows_of_grid], threads, shared };
        gpu.launch(source, &defines, &format!("attention_{name}_{suffix}"), grid, &args)
    }
}

fn shape4(tensor: &Tensor) -> Option<[usize; 4]> {
    dims(tensor).try_into().ok()
}

/// Key lengths, or the starts of packed sequences, as the kernels read them.
fn device_lengths(like: &Tensor, spec: &AttentionSpec) -> Option<Tensor> {
    let numbers: Vec<usize> = match (&spec.segments, &spec.key_lengths) {
        (Some(segments), _) => std::iter::once(0)
            .chain(segments.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            }))
            .collect(),
        (None, Some(lengths)) => lengths.clone(),
        (None, None) => return None,
    };
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| (*n as i32).to_le_bytes()).collect();
    let handle = like.client.create_from_slice(&bytes);
    let (client, device) = (like.client.clone(), like.device.clone());
    Some(Tensor::new_contiguous(client, device, [numbers.len()].into(), handle, DType::I32))
}

/// Cosines and sines for kernels that rotate queries and keys themselves, and the elements between their batch rows.
type Tables = (Tensor, Tensor, usize);

/// The tables, where the kernels can read them.
fn tables(cos: &Tensor, sin: &Tensor, p: &Problem) -> Option<Tables> {
    let element = |table: &Tensor| Element::of(table).is_some();
    let [batch, positions, half] = dims(cos).try_into().ok()?;
    let same = dims(sin) == [batch, positions, half] && (batch == 1 || batch == p.b);
    if !element(cos) || !element(sin) || !same || positions != p.sq || half * 2 != p.d {
        return None;
    }
    let [cos, sin] = [cos, sin].map(|table| {
        let table = contiguous(cast(table.clone(), DType::F32));
        match table.handle.offset_start.unwrap_or(0).is_multiple_of(16) {
            true => table,
            false => copied(&table),
        }
    });
    Some((cos, sin, if batch == 1 { 0 } else { positions * half }))
}

/// `struct Rotary` of the kernels.
fn rotary_arg([cos, sin]: [u64; 2], step: usize) -> Arg {
    Arg::Struct(vec![cos, sin, step as u64])
}

/// Rotation and attention in one kernel, and its gradients in another, where the sequences are short enough.
pub(super) fn rotary_attention<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    [cos, sin]: [&Tensor; 2],
    spec: &AttentionSpec,
) -> Option<AttentionOutput<B>> {
    let p = Problem::new(q, k, v, spec)?;
    let rows = p.whole(&q.device)?;
    let tables = tables(cos, sin, &p)?;
    Some(forward([q, k, v], spec, p, Some(rows), Some(tables)))
}

pub(super) fn attention<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
) -> Option<AttentionOutput<B>> {
    let p = Problem::new(q, k, v, spec)?;
    // With nothing to rotate, longer ones are faster in blocks of 128 queries.
    let rows = p.whole(&q.device).filter(|rows| *rows <= 96);
    Some(forward([q, k, v], spec, p, rows, None))
}

/// The gradients of [`rotary_attention`] for what it took.
pub(super) fn rotary_attention_backward<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    [cos, sin]: [&Tensor; 2],
    spec: &AttentionSpec,
    forward: &AttentionOutput<B>,
    grad: &Tensor,
) -> Option<AttentionGrads<B>> {
    let p = Problem::new(q, k, v, spec)?;
    let rows = p.whole(&q.device)?;
    let tables = tables(cos, sin, &p)?;
    Some(backward([q, k, v], spec, forward, grad, [true; 3], p, Some(rows), Some(tables)))
}

pub(super) fn attention_backward<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
    forward: &AttentionOutput<B>,
    grad: &Tensor,
    needs: [bool; 3],
) -> Option<AttentionGrads<B>> {
    let p = Problem::new(q, k, v, spec)?;
    let rows = p.whole(&q.device).filter(|_| needs == [true; 3]);
    Some(backward([q, k, v], spec, forward, grad, needs, p, rows, None))
}

/// `whole`: by a kernel for short sequences of so many rows, which rotates where there are tables.
fn forward<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
    p: Problem,
    whole: Option<usize>,
    tables: Option<Tables>,
) -> AttentionOutput<B> {
    let lengths = device_lengths(q, spec);
    let output = empty_heads(q, [p.b, p.hq, p.sq, p.d], q.dtype);
    let logsumexp = empty(q, &[p.b, p.hq, p.sq], DType::F32);
    let [q, k, v] = [q, k, v].map(|tensor| p.heads(tensor.clone()));
    let o = Heads::new(output.clone());
    let strides = [&q, &k, &v, &o].map(Heads::arg);
    let [cos, sin] = [tables.as_ref().map(|t| &t.0), tables.as_ref().map(|t| &t.1)];
    let step = tables.as_ref().map_or(0, |tables| tables.2);
    submit(
        [
            Some(&q.tensor),
            Some(&k.tensor),
            Some(&v.tensor),
            Some(&o.tensor),
            Some(&logsumexp),
            lengths.as_ref(),
            cos,
            sin,
        ],
        move |gpu, [q, k, v, o, lse, lengths, cos, sin]| {
            let mut args = [q, k, v, o, lse].map(Arg::Address).to_vec();
            args.extend(strides);
            args.push(p.shape(lengths));
            let Some(rows) = whole else {
                return p.launch(gpu, "forward", Some(0), [p.sq, p.hq], args);
            };
            args.push(rotary_arg([cos, sin], step));
            p.launch_whole(gpu, "forward", rows, 3, &args)
        },
    );
    AttentionOutput { output, logsumexp }
}

/// `whole` and `tables` as in [`forward`]; such a kernel writes all three gradients.
#[allow(clippy::too_many_arguments)]
fn backward<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
    forward: &AttentionOutput<B>,
    grad: &Tensor,
    [needs_q, needs_k, needs_v]: [bool; 3],
    p: Problem,
    whole: Option<usize>,
    tables: Option<Tables>,
) -> AttentionGrads<B> {
    let lengths = device_lengths(q, spec);
    let dq = needs_q.then(|| empty_heads(q, [p.b, p.hq, p.sq, p.d], q.dtype));
    // One kernel writes both.
    let keys = needs_k || needs_v;
    let [dk, dv] =
        [k, v].map(|like| keys.then(|| empty_heads(like, [p.b, p.hkv, p.sk, p.d], q.dtype)));
    // Kernels for short sequences need no memory for it.
    let delta = empty(q, &[if whole.is_some() { 1 } else { p.b * p.hq * p.sq }], DType::F32);
    let logsumexp = contiguous(forward.logsumexp.clone());
    let grad = cast(grad.clone(), q.dtype);
    let [q, k, v, o, g] = [q, k, v, &forward.output, &grad].map(|x| p.heads(x.clone()));
    let strides = [&q, &k, &v, &o, &g].map(Heads::arg);
    let grads = [&dq, &dk, &dv].map(|grad| grad.clone().map(Heads::new));
    let grad_strides = grads.each_ref().map(|grad| grad.as_ref().map(Heads::arg));
    let [dq_memory, dk_memory, dv_memory] =
        grads.each_ref().map(|grad| grad.as_ref().map(|grad| &grad.tensor));
    let [cos, sin] = [tables.as_ref().map(|t| &t.0), tables.as_ref().map(|t| &t.1)];
    let step = tables.as_ref().map_or(0, |tables| tables.2);
    submit(
        [
            Some(&q.tensor),
            Some(&k.tensor),
            Some(&v.tensor),
            Some(&o.tensor),
            Some(&g.tensor),
            Some(&logsumexp),
            Some(&delta),
            dq_memory,
            dk_memory,
            dv_memory,
            lengths.as_ref(),
            cos,
            sin,
        ],
        move |gpu, [q, k, v, o, g, lse, delta, dq, dk, dv, lengths, cos, sin]| {
            let shape = p.shape(lengths);
            if let ([Some(dq_steps), Some(dk_steps), Some(dv_steps)], Some(rows)) =
                (&grad_strides, whole)
            {
                let mut args = [q, k, v, o, g, lse, dq, dk, dv].map(Arg::Address).to_vec();
                args.extend(strides);
                args.extend([dq_steps, dk_steps, dv_steps].map(Arg::clone));
                args.extend([shape, rotary_arg([cos, sin], step)]);
                return p.launch_whole(gpu, "backward", rows, 4, &args);
            }
            let [q_steps, k_steps, v_steps, o_steps, g_steps] = strides;
            let [dq_steps, dk_steps, dv_steps] = grad_strides;
            let mut args = [o, g, delta].map(Arg::Address).to_vec();
            args.extend([o_steps, g_steps.clone(), shape.clone()]);
            p.launch(gpu, "delta", None, [p.sq, p.hq], args)?;
            let inputs = [q, k, v, g, lse, delta].map(Arg::Address);
            let steps = [q_steps, k_steps, v_steps, g_steps];
            if let (Some(dk_steps), Some(dv_steps)) = (dk_steps, dv_steps) {
                let mut args = inputs.to_vec();
                args.extend([dk, dv].map(Arg::Address));
                args.extend(steps.clone());
                args.extend([dk_steps, dv_steps, shape.clone()]);
                p.launch(gpu, "backward_dkv", Some(1), [p.sk, p.hkv], args)?;
            }
            if let Some(dq_steps) = dq_steps {
                let mut args = inputs.to_vec();
                args.push(Arg::Address(dq));
                args.extend(steps);
                args.extend([dq_steps, shape]);
                p.launch(gpu, "backward_dq", Some(2), [p.sq, p.hq], args)?;
            }
            Ok(())
        },
    );
    AttentionGrads { q: dq, k: dk.filter(|_| needs_k), v: dv.filter(|_| needs_v) }
}
