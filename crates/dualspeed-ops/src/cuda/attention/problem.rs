//! What the attention kernels are told: sizes, strides, lengths, tables; and how they are started.

use burn::tensor::DType;
use burn_cuda::CudaDevice;

use crate::cuda::cast::cast;
use crate::cuda::element::{Element, Tensor};
use crate::cuda::error::CudaError;
use crate::cuda::gpu::Gpu;
use crate::cuda::kernel::{Arg, Grid};
use crate::cuda::ready::shared_memory;
use crate::cuda::sources;
use crate::cuda::tensor::{contiguous, copied, dims, heads, served};
use crate::types::AttentionSpec;

/// Rows of the kernels for short sequences.
const WHOLE_ROWS: [usize; 3] = [64, 96, 128];
/// The widest head of the other kernels.
const MAX_DIM: usize = 256;

/// `[b, h, s, d]` with any strides between rows of `d`.
pub(super) struct Heads {
    pub(super) tensor: Tensor,
    strides: [usize; 3],
}

impl Heads {
    pub(super) fn new(tensor: Tensor) -> Self {
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

    pub(super) fn arg(&self) -> Arg {
        Arg::Struct(self.strides.map(|stride| stride as u64).to_vec())
    }
}

/// The sizes that all kernels share.
#[derive(Clone, Debug)]
pub(super) struct Problem {
    element: Element,
    pub(super) b: usize,
    pub(super) hq: usize,
    pub(super) hkv: usize,
    pub(super) sq: usize,
    pub(super) sk: usize,
    pub(super) d: usize,
    causal: bool,
    flash: bool,
    /// How many sequences are packed into the one row, and the longest of them.
    packed: Option<(usize, usize)>,
}

impl Problem {
    pub(super) fn new(q: &Tensor, k: &Tensor, v: &Tensor, spec: &AttentionSpec) -> Option<Self> {
        let element = served(&[q, k, v])?;
        let ([b, hq, sq, d], [_, hkv, sk, _]) = (shape4(q)?, shape4(k)?);
        let same = k.dtype == q.dtype && v.dtype == q.dtype;
        let fits = b <= 65_535 && hq <= 65_535 && d <= MAX_DIM;
        let flash = element != Element::F32 && sources::FLASH_DIMS.contains(&d);
        let causal = spec.causal;
        let packed = match &spec.segments {
            Some(lengths) => {
                Some((lengths.len(), lengths.iter().copied().max().filter(|max| *max > 0)?))
            }
            None => None,
        };
        (same && fits).then_some(Self { element, b, hq, hkv, sq, sk, d, causal, flash, packed })
    }

    pub(super) fn heads(&self, tensor: Tensor) -> Heads {
        let heads = Heads::new(tensor);
        if self.flash { heads.aligned(self.element) } else { heads }
    }

    /// `struct Shape` of the kernels; `lengths` is the address of [`device_lengths`].
    pub(super) fn shape(&self, lengths: u64) -> Arg {
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
    pub(super) fn whole(&self, device: &CudaDevice) -> Option<usize> {
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
    pub(super) fn launch_whole(
        &self,
        gpu: &mut Gpu,
        name: &str,
        rows: usize,
        tiles: usize,
        args: &[Arg],
    ) -> Result<(), CudaError> {
        let (source, defines) = sources::attention_whole(self.d);
        let name = format!("attention_whole_{name}_{rows}_{}", self.element.suffix());
        let sequences = self.packed.map_or(self.b, |(sequences, _)| sequences);
        let shared = self.shared(rows, tiles);
        let grid = Grid { blocks: [1, self.hq, sequences], threads: 2 * rows, shared };
        gpu.launch(source, &defines, &name, grid, args)
    }

    /// Starts one of the kernels: `part` is its place in `attention_config`, `len` the length it walks over in blocks.
    pub(super) fn launch(
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
            return gpu.launch(
                &sources::ATTENTION_ANY,
                "",
                &format!("attention_any_{name}_{suffix}"),
                grid,
                &args,
            );
        }
        let (source, defines) = sources::attention(gpu.kernels.arch(), self.d);
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
pub(super) fn device_lengths(like: &Tensor, spec: &AttentionSpec) -> Option<Tensor> {
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
pub(super) type Tables = (Tensor, Tensor, usize);

/// The tables, where the kernels can read them.
pub(super) fn tables(cos: &Tensor, sin: &Tensor, p: &Problem) -> Option<Tables> {
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
pub(super) fn rotary_arg([cos, sin]: [u64; 2], step: usize) -> Arg {
    Arg::Struct(vec![cos, sin, step as u64])
}
