//! Safetensors, single or in shards with `model.safetensors.index.json`.
//!
//! Files are read at positions, one tensor at a time: like a memory map, nothing is loaded that is not asked for; unlike
//! one, no page of a 13 GB file counts against this process, and a file cut short under our hands is an error rather
//! than a signal.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};
use std::sync::Mutex;

use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::Deserialize;

use super::error::ImportError;
use super::recognise::refuse_pointer;
use super::source::{TensorInfo, WeightSource};
use super::tensor::{FloatType, HostTensor};

/// Hugging Face's name of the single file.
pub const SINGLE: &str = "model.safetensors";
/// Hugging Face's name of the list of shards.
pub const INDEX: &str = "model.safetensors.index.json";

/// A header longer than this is a damaged or hostile file (the format's own limit).
const LONGEST_HEADER: u64 = 100_000_000;

/// Tensors of one or more safetensors files.
pub struct SafetensorsWeights {
    path: PathBuf,
    infos: BTreeMap<String, TensorInfo>,
    places: BTreeMap<String, Place>,
    files: Vec<(PathBuf, Mutex<File>)>,
}

struct Place {
    file: usize,
    dtype: Dtype,
    offset: u64,
}

/// The index of a sharded checkpoint.
#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl SafetensorsWeights {
    /// Opens one file.
    ///
    /// # Errors
    /// [`ImportError`] if it cannot be read or its header is damaged.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        let mut weights = Self::empty(path);
        weights.add(path)?;
        Ok(weights)
    }

    /// Opens every shard that an index names.
    ///
    /// # Errors
    /// [`ImportError`] if the index is damaged or names a file outside its directory, if a shard is missing or damaged,
    /// and if index and shards do not name the same tensors.
    pub fn open_index(path: &Path) -> Result<Self, ImportError> {
        let text = std::fs::read(path).map_err(ImportError::read(path))?;
        let shards = parse_index(&text).map_err(|problem| ImportError::malformed(path, problem))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut weights = Self::empty(path);
        for (shard, keys) in &shards {
            let file = dir.join(shard);
            if !file.is_file() {
                let problem = format!("it names the shard `{shard}`, which is not there; fetch it");
                return Err(ImportError::malformed(path, problem));
            }
            let found: BTreeSet<String> = weights.add(&file)?.into_iter().collect();
            if let Some(key) = keys.difference(&found).next() {
                let problem = format!("the index puts it here ({}), but it is not", path.display());
                return Err(ImportError::tensor(&file, key, problem));
            }
            if let Some(key) = found.difference(keys).next() {
                let problem = format!("the index {} does not list it here", path.display());
                return Err(ImportError::tensor(&file, key, problem));
            }
        }
        Ok(weights)
    }

    fn empty(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
            infos: BTreeMap::new(),
            places: BTreeMap::new(),
            files: Vec::new(),
        }
    }

    /// Reads a file's header; returns the names of its tensors.
    fn add(&mut self, path: &Path) -> Result<Vec<String>, ImportError> {
        refuse_pointer(path)?;
        let malformed = |problem: String| ImportError::malformed(path, problem);
        let mut file = File::open(path).map_err(ImportError::read(path))?;
        let size = file.metadata().map_err(ImportError::read(path))?.len();
        let mut head = [0; 8];
        if size < 8 {
            return Err(malformed(format!("{size} bytes are no safetensors file; fetch it again")));
        }
        file.read_exact(&mut head).map_err(ImportError::read(path))?;
        let length = u64::from_le_bytes(head);
        // Checked before anything of that size is allocated.
        if length > LONGEST_HEADER || length > size - 8 {
            return Err(malformed(format!(
                "the header claims {length} bytes but the file has {size}; it is truncated or no safetensors file"
            )));
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header).map_err(ImportError::read(path))?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| malformed(format!("damaged header: {error}")))?;
        let start = 8 + length;
        let index = self.files.len();
        let mut names = Vec::new();
        for (key, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            let bits = info
                .shape
                .iter()
                .try_fold(info.dtype.bitsize(), |bits, side| bits.checked_mul(*side))
                .ok_or_else(|| ImportError::tensor(path, &key, "its shape overflows"))?;
            if begin > end || (end - begin).checked_mul(8) != Some(bits) {
                let problem = format!(
                    "bytes {begin}..{end} are not {:?} values of shape {:?}; the header is damaged",
                    info.dtype, info.shape
                );
                return Err(ImportError::tensor(path, &key, problem));
            }
            if start.saturating_add(end as u64) > size {
                let problem = format!(
                    "it ends at byte {} of a file of {size}: the file is truncated; fetch it again",
                    start.saturating_add(end as u64)
                );
                return Err(ImportError::tensor(path, &key, problem));
            }
            let place = Place { file: index, dtype: info.dtype, offset: start + begin as u64 };
            if self.places.insert(key.clone(), place).is_some() {
                return Err(ImportError::tensor(path, &key, "another shard has it too"));
            }
            let info = TensorInfo {
                path: path.to_owned(),
                key: key.clone(),
                shape: info.shape.clone(),
                dtype: format!("{:?}", info.dtype),
            };
            self.infos.insert(key.clone(), info);
            names.push(key);
        }
        self.files.push((path.to_owned(), Mutex::new(file)));
        Ok(names)
    }
}

/// Keys by shard; only plain file names are let through.
pub fn parse_index(text: &[u8]) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    let index: Index = serde_json::from_slice(text)
        .map_err(|error| format!("no index of a sharded checkpoint: {error}"))?;
    let mut shards: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (key, shard) in index.weight_map {
        let mut parts = Path::new(&shard).components();
        let plain = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
        if !plain || shard.contains('\\') {
            return Err(format!(
                "tensor `{key}` is said to lie in {shard:?}; shards must be files beside the index"
            ));
        }
        shards.entry(shard).or_default().insert(key);
    }
    Ok(shards)
}

impl WeightSource for SafetensorsWeights {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn read(&self, key: &str) -> Result<HostTensor, ImportError> {
        self.read_with(key, HostTensor::read_le)
    }

    fn read_transposed(&self, key: &str) -> Result<HostTensor, ImportError> {
        self.read_with(key, HostTensor::read_le_transposed)
    }
}

impl SafetensorsWeights {
    fn read_with(
        &self,
        key: &str,
        read: impl FnOnce(Vec<usize>, FloatType, &mut File) -> std::io::Result<HostTensor>,
    ) -> Result<HostTensor, ImportError> {
        let place = self
            .places
            .get(key)
            .ok_or_else(|| ImportError::tensor(&self.path, key, "there is no such tensor"))?;
        let (path, file) = &self.files[place.file];
        let dtype = match place.dtype {
            Dtype::F32 => FloatType::F32,
            Dtype::F16 => FloatType::F16,
            Dtype::BF16 => FloatType::Bf16,
            other => {
                let problem = format!("its type is {other:?}; weights must be F32, F16 or BF16");
                return Err(ImportError::tensor(path, key, problem));
            }
        };
        let shape = self.infos[key].shape.clone();
        let mut file = file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(place.offset))
            .and_then(|_| read(shape, dtype, &mut file))
            .map_err(|error| ImportError::tensor(path, key, format!("cannot be read: {error}")))
    }
}
