//! One shard of a feature store: a safetensors file of some images' features and, as its index, their keys.
//!
//! Tensors: `image_keys`, `[images]`, u64; every kind of feature by its name, `[images, n, width]`. The header says which
//! layout this is (`format`), which tower made it (`tower`), and which features it was asked for (`needs`), since a tower
//! leaves out what it cannot make.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::Path;

use burn::tensor::DType;
use dualspeed_core::files;
use memmap2::Mmap;
use safetensors::tensor::{SafeTensorError, TensorInfo};
use safetensors::{Dtype, SafeTensors, View};

use super::rows::{Layout, Rows};

const FORMAT: &str = "2";
const IMAGE_KEYS: &str = "image_keys";
/// safetensors: the length of the header, in bytes, comes first.
const LENGTH: usize = 8;

/// Why a shard is of no use.
#[derive(Debug)]
pub(crate) enum ShardError {
    /// The file system refused.
    Io(std::io::Error),
    /// It is not what it should be.
    Damaged(String),
}

impl From<std::io::Error> for ShardError {
    fn from(error: std::io::Error) -> Self {
        Self::Io(error)
    }
}

/// A mapped shard.
#[derive(Debug)]
pub(crate) struct Shard {
    map: Mmap,
    keys: Vec<u64>,
    needs: Vec<String>,
    layouts: BTreeMap<String, Layout>,
    ranges: BTreeMap<String, Range<usize>>,
}

impl Shard {
    /// Maps a shard and reads its index.
    pub fn open(path: &Path, tower: &str) -> Result<Self, ShardError> {
        let map = map(&File::open(path).map_err(ShardError::Io)?).map_err(ShardError::Io)?;
        let damaged = |problem: String| ShardError::Damaged(problem);
        // Refuses a file that is shorter or longer than its header says.
        let (header, metadata) =
            SafeTensors::read_metadata(&map).map_err(|error| damaged(error.to_string()))?;
        let empty = HashMap::new();
        let said = metadata.metadata().as_ref().unwrap_or(&empty);
        let said = |key: &str| said.get(key).map_or("", String::as_str);
        if said("format") != FORMAT {
            let found = said("format");
            return Err(damaged(format!("its format is `{found}`, this version reads `{FORMAT}`")));
        }
        if said("tower") != tower {
            return Err(damaged(format!("it belongs to the tower `{}`", said("tower"))));
        }
        let needs = said("needs").split(',').filter(|name| !name.is_empty());
        let needs = needs.map(str::to_owned).collect();
        let start = LENGTH + header;
        let range = |info: &TensorInfo| start + info.data_offsets.0..start + info.data_offsets.1;
        let tensors = metadata.tensors();
        let index = tensors.get(IMAGE_KEYS).filter(|info| info.dtype == Dtype::U64);
        let index = index.ok_or_else(|| damaged(format!("it has no `{IMAGE_KEYS}`")))?;
        let (words, _) = map[range(index)].as_chunks::<8>();
        let keys: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let (mut layouts, mut ranges) = (BTreeMap::new(), BTreeMap::new());
        for (name, info) in tensors.iter().filter(|(name, _)| *name != IMAGE_KEYS) {
            let layout = match info.shape[..] {
                [images, n, width] if images == keys.len() => {
                    from_stored(info.dtype).map(|dtype| Layout { shape: [n, width], dtype })
                }
                _ => None,
            };
            let layout = layout.ok_or_else(|| {
                let count = keys.len();
                damaged(format!("`{name}` is {:?} {:?} for {count} images", info.dtype, info.shape))
            })?;
            layouts.insert(name.clone(), layout);
            ranges.insert(name.clone(), range(info));
        }
        drop(tensors);
        Ok(Self { keys, needs, layouts, ranges, map })
    }

    /// The images, in the order of the rows.
    pub fn keys(&self) -> &[u64] {
        &self.keys
    }

    /// Whether it was made for at least these features.
    pub fn serves(&self, needs: &[String]) -> bool {
        needs.iter().all(|name| self.needs.iter().any(|made| made == name))
    }

    /// Shapes and types by kind.
    pub fn layouts(&self) -> &BTreeMap<String, Layout> {
        &self.layouts
    }

    /// The bytes of one image.
    pub fn row(&self, kind: &str, row: usize) -> Option<&[u8]> {
        let size = self.layouts.get(kind)?.bytes();
        let all = self.map.get(self.ranges.get(kind)?.clone())?;
        all.get(row * size..(row + 1) * size)
    }
}

/// Writes a shard under a temporary name, waits until it is on disk, and gives it its own.
pub(crate) fn write(
    path: &Path,
    temporary: &Path,
    tower: &str,
    needs: &[String],
    rows: &Rows,
) -> Result<(), ShardError> {
    let mut tensors = Vec::with_capacity(rows.kinds.len() + 1);
    let keys: Vec<u8> = rows.keys.iter().flat_map(|key| key.to_le_bytes()).collect();
    let shape = vec![rows.keys.len()];
    tensors.push((IMAGE_KEYS, Stored { dtype: Dtype::U64, shape, bytes: Cow::Owned(keys) }));
    for (name, kind) in &rows.kinds {
        let [n, width] = kind.layout.shape;
        let dtype = to_stored(kind.layout.dtype).ok_or_else(|| {
            ShardError::Damaged(format!("`{name}` is {:?}, which is not kept", kind.layout.dtype))
        })?;
        let shape = vec![rows.keys.len(), n, width];
        let bytes = Cow::Borrowed(kind.bytes.as_slice());
        tensors.push((name.as_str(), Stored { dtype, shape, bytes }));
    }
    let said = [("format", FORMAT.to_owned()), ("tower", tower.to_owned())];
    let said = said.into_iter().chain([("needs", needs.join(","))]);
    let said = said.map(|(key, value)| (key.to_owned(), value)).collect();
    files::write_whole_at(path, temporary, |temporary| {
        safetensors::serialize_to_file(tensors, Some(said), temporary).map_err(
            |error| match error {
                SafeTensorError::IoError(source) => ShardError::Io(source),
                other => ShardError::Damaged(other.to_string()),
            },
        )
    })
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: a shard has its name only once it is complete, and this crate never writes to it again: it is replaced by
    // rename or removed, which leaves a mapped file as it is. Whoever else cuts it short ends the process.
    unsafe { Mmap::map(file) }
}

/// A tensor to be written.
struct Stored<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Cow<'a, [u8]>,
}

impl View for Stored<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

const TYPES: [(DType, Dtype); 4] = [
    (DType::F32, Dtype::F32),
    (DType::BF16, Dtype::BF16),
    (DType::F16, Dtype::F16),
    (DType::F64, Dtype::F64),
];

fn to_stored(dtype: DType) -> Option<Dtype> {
    TYPES.iter().find_map(|(ours, theirs)| (*ours == dtype).then_some(*theirs))
}

fn from_stored(dtype: Dtype) -> Option<DType> {
    TYPES.iter().find_map(|(ours, theirs)| (*theirs == dtype).then_some(*ours))
}
