//! Attention: `kernels/attention.cu` on tensor cores where it serves, `kernels/attention_any.cu` elsewhere.

use burn::tensor::DType;

use super::elementwise::{empty_heads, heads};
use super::error::CudaError;
use super::gpu::{Gpu, submit};
use super::kernel::{Arg, Grid, Source};
use super::tensor::{Element, Tensor, cast, contiguous, copied, dims, empty, served};
use crate::Backend;
use crate::types::*;

static FLASH: Source = Source {
    name: "attention",
    text: concat!(include_str!("kernels/prelude.cu"), include_str!("kernels/attention.cu")),
};
/// The same kernels on the warpgroup products of Hopper.
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
/// The widest head of the other kernels.
const MAX_DIM: usize = 256;

/// The source for a head dim and the options it is compiled with.
fn module(arch: &str, d: usize) -> (&'static Source, String) {
    match arch == "sm_90a" && HOPPER_DIMS.contains(&d) {
        true => (&HOPPER, format!("-DHEAD_DIM={d} -DWGMMA")),
        false => (&FLASH, format!("-DHEAD_DIM={d}")),
    }
}

/// Those for the head dims of the decoder and of the vision tower.
pub(super) fn modules(arch: &str) -> Vec<(&'static Source, String)> {
    [128, 64].map(|d| module(arch, d)).to_vec()
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

pub(super) fn attention<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
) -> Option<AttentionOutput<B>> {
    let p = Problem::new(q, k, v, spec)?;
    let lengths = device_lengths(q, spec);
    let output = empty_heads(q, [p.b, p.hq, p.sq, p.d], q.dtype);
    let logsumexp = empty(q, &[p.b, p.hq, p.sq], DType::F32);
    let [q, k, v] = [q, k, v].map(|tensor| p.heads(tensor.clone()));
    let o = Heads::new(output.clone());
    let strides = [&q, &k, &v, &o].map(Heads::arg);
    submit(
        [
            Some(&q.tensor),
            Some(&k.tensor),
            Some(&v.tensor),
            Some(&o.tensor),
            Some(&logsumexp),
            lengths.as_ref(),
        ],
        move |gpu, [q, k, v, o, lse, lengths]| {
            let mut args = [q, k, v, o, lse].map(Arg::Address).to_vec();
            args.extend(strides);
            args.push(p.shape(lengths));
            p.launch(gpu, "forward", Some(0), [p.sq, p.hq], args)
        },
    );
    Some(AttentionOutput { output, logsumexp })
}

pub(super) fn attention_backward<B: Backend<FloatTensorPrimitive = Tensor>>(
    [q, k, v]: [&Tensor; 3],
    spec: &AttentionSpec,
    forward: &AttentionOutput<B>,
    grad: &Tensor,
    [needs_q, needs_k, needs_v]: [bool; 3],
) -> Option<AttentionGrads<B>> {
    let p = Problem::new(q, k, v, spec)?;
    let lengths = device_lengths(q, spec);
    let dq = needs_q.then(|| empty_heads(q, [p.b, p.hq, p.sq, p.d], q.dtype));
    // One kernel writes both.
    let keys = needs_k || needs_v;
    let [dk, dv] =
        [k, v].map(|like| keys.then(|| empty_heads(like, [p.b, p.hkv, p.sk, p.d], q.dtype)));
    let delta = empty(q, &[p.b, p.hq, p.sq], DType::F32);
    let logsumexp = contiguous(forward.logsumexp.clone());
    let grad = cast(grad.clone(), q.dtype);
    let [q, k, v, o, g] = [q, k, v, &forward.output, &grad].map(|x| p.heads(x.clone()));
    let strides = [&q, &k, &v, &o, &g].map(Heads::arg);
    let grads = [&dq, &dk, &dv].map(|grad| grad.clone().map(Heads::new));
    let grad_strides = grads.each_ref().map(|grad| grad.as_ref().map(Heads::arg));
    let [dq_memory, dk_memory, dv_memory] =
        grads.each_ref().map(|grad| grad.as_ref().map(|grad| &grad.tensor));
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
        ],
        move |gpu, [q, k, v, o, g, lse, delta, dq, dk, dv, lengths]| {
            let [q_steps, k_steps, v_steps, o_steps, g_steps] = strides;
            let [dq_steps, dk_steps, dv_steps] = grad_strides;
            let shape = p.shape(lengths);
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
    Some(AttentionGrads { q: dq, k: dk.filter(|_| needs_k), v: dv.filter(|_| needs_v) })
}
