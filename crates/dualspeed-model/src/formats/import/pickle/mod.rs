//! PyTorch's pickles (`pytorch_model.bin`, `mm_projector.bin`, `*.pth`): zip archives and the legacy format before 1.6,
//! non-contiguous tensors included. Nothing in them is executed.

mod machine;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use self::machine::{Id, Input, Machine, Value};
use super::error::ImportError;
use super::recognise::refuse_pointer;
use super::safetensors::parse_index;
use super::source::{Layered, TensorInfo, WeightSource};
use super::tensor::{FloatType, HostTensor};

/// `torch.save`'s legacy magic number, as a pickle.
const LEGACY_MAGIC: &[u8] =
    &[0x80, 2, 0x8a, 10, 0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19, b'.'];
/// The list of tensors of the largest model is a few megabytes.
const LARGEST_LIST: u64 = 1 << 28;
/// A name longer than this is none.
const LONGEST_NAME: usize = 1 << 12;
/// Dictionaries in dictionaries, deeper than anything that was meant.
const DEEPEST: usize = 8;

/// Tensors of one pickle.
pub struct PickleWeights {
    path: PathBuf,
    infos: BTreeMap<String, TensorInfo>,
    views: BTreeMap<String, TensorView>,
    storages: HashMap<String, StoragePlace>,
}

/// A tensor as a view of a storage.
#[derive(Clone, Debug)]
struct TensorView {
    storage: String,
    kind: String,
    offset: u64,
    shape: Vec<usize>,
    strides: Vec<u64>,
}

/// Where a storage's bytes lie in the file.
#[derive(Clone, Copy, Debug)]
struct StoragePlace {
    offset: u64,
    bytes: u64,
}

impl PickleWeights {
    /// Opens a pickle of either format and reads its list of tensors.
    ///
    /// # Errors
    /// [`ImportError`] if it is damaged, of no known format, or would call a function.
    pub fn open(path: &Path) -> Result<Self, ImportError> {
        refuse_pointer(path)?;
        let mut file = File::open(path).map_err(ImportError::read(path))?;
        let mut head = Vec::new();
        let taken = file.by_ref().take(LEGACY_MAGIC.len() as u64).read_to_end(&mut head);
        taken.map_err(ImportError::read(path))?;
        file.seek(SeekFrom::Start(0)).map_err(ImportError::read(path))?;
        let opened = if head.starts_with(b"PK") {
            Self::open_zip(path, file)
        } else if head == LEGACY_MAGIC {
            Self::open_legacy(path, file)
        } else {
            Err("this is neither a zip archive nor a legacy pickle of torch.save".into())
        };
        opened.map_err(|problem| ImportError::malformed(path, problem))
    }

    /// Opens every shard that a `pytorch_model.bin.index.json` names.
    ///
    /// # Errors
    /// As [`PickleWeights::open`]; also if the index is damaged, or it and the shards differ.
    pub fn open_index(path: &Path) -> Result<Layered, ImportError> {
        let text = std::fs::read(path).map_err(ImportError::read(path))?;
        let shards = parse_index(&text).map_err(|problem| ImportError::malformed(path, problem))?;
        let dir = path.parent().unwrap_or(Path::new("."));
        let mut layers: Vec<Box<dyn WeightSource>> = Vec::new();
        for (shard, keys) in shards {
            let file = dir.join(&shard);
            if !file.is_file() {
                let problem = format!("it names the shard `{shard}`, which is not there; fetch it");
                return Err(ImportError::malformed(path, problem));
            }
            let weights = Self::open(&file)?;
            if let Some(key) = keys.iter().find(|key| !weights.infos.contains_key(*key)) {
                let problem = format!("the index puts it here ({}), but it is not", path.display());
                return Err(ImportError::tensor(&file, key, problem));
            }
            layers.push(Box::new(weights));
        }
        Ok(Layered::new(path, layers))
    }

    fn open_zip(path: &Path, file: File) -> Result<Self, String> {
        let mut archive = zip::ZipArchive::new(BufReader::new(file))
            .map_err(|error| format!("damaged zip archive: {error}"))?;
        let list = archive
            .file_names()
            .find(|name| name.ends_with("/data.pkl") || *name == "data.pkl")
            .map(str::to_owned)
            .ok_or("a zip archive without data.pkl; it was not saved by torch.save")?;
        let prefix = list.trim_end_matches("data.pkl").to_owned();
        let mut machine = Machine::default();
        let root = {
            let entry = archive.by_name(&list).map_err(|error| format!("{list}: {error}"))?;
            let mut input = Input::new(BufReader::new(entry.take(LARGEST_LIST)));
            machine.run(&mut input).map_err(|problem| format!("{list} {problem}"))?
        };
        if let Ok(mut entry) = archive.by_name(&format!("{prefix}byteorder")) {
            let mut order = String::new();
            let read = entry.by_ref().take(16).read_to_string(&mut order);
            if read.is_err() || order.trim() != "little" {
                return Err(format!("byte order {order:?}; only little-endian files are read"));
            }
        }
        let views = views(&machine, root)?;
        let keys: BTreeSet<&String> = views.values().map(|view| &view.storage).collect();
        let mut storages = HashMap::new();
        for key in keys {
            let name = format!("{prefix}data/{key}");
            let entry = archive.by_name(&name).map_err(|error| format!("{name}: {error}"))?;
            if entry.compression() != zip::CompressionMethod::Stored {
                return Err(format!("{name} is compressed; torch.save does not do that"));
            }
            let offset = entry.data_start().ok_or_else(|| format!("{name} has no place"))?;
            storages.insert(key.clone(), StoragePlace { offset, bytes: entry.size() });
        }
        Self::new(path, views, storages)
    }

    fn open_legacy(path: &Path, file: File) -> Result<Self, String> {
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        let mut input = Input::new(BufReader::new(file));
        let mut machine = Machine::default();
        // Magic number, protocol, and facts about the machine that saved it.
        for _ in 0..3 {
            machine.run(&mut input)?;
        }
        let root = machine.run(&mut input)?;
        let keys = machine.run(&mut input)?;
        let Value::List(keys) = &machine.values[keys] else {
            return Err("the list of storages is missing".into());
        };
        let kinds: HashMap<&str, &str> = machine
            .values
            .iter()
            .filter_map(|value| match value {
                Value::Storage { kind, key, .. } => Some((key.as_str(), kind.as_str())),
                _ => None,
            })
            .collect();
        let mut storages = HashMap::new();
        let mut at = input.position;
        for key in keys {
            let key = machine.text(*key).ok_or("a storage without a name")?;
            let kind = kinds.get(key).ok_or_else(|| format!("storage {key} is used by nothing"))?;
            let element = element_size(kind).ok_or_else(|| format!("unknown storage {kind}"))?;
            input.reader.seek(SeekFrom::Start(at)).map_err(|error| error.to_string())?;
            let numel = u64::from_le_bytes(input.array().map_err(|_| truncated(key, size))?);
            let bytes = numel.checked_mul(element).ok_or_else(|| truncated(key, size))?;
            let offset = at + 8;
            let end = offset.checked_add(bytes).filter(|end| *end <= size);
            at = end.ok_or_else(|| truncated(key, size))?;
            storages.insert(key.to_owned(), StoragePlace { offset, bytes });
        }
        Self::new(path, views(&machine, root)?, storages)
    }

    fn new(
        path: &Path,
        views: BTreeMap<String, TensorView>,
        storages: HashMap<String, StoragePlace>,
    ) -> Result<Self, String> {
        let info = |key: &String, view: &TensorView| TensorInfo {
            path: path.to_owned(),
            key: key.clone(),
            shape: view.shape.clone(),
            dtype: view.kind.trim_start_matches("torch ").trim_end_matches("Storage").to_owned(),
        };
        let infos = views.iter().map(|(key, view)| (key.clone(), info(key, view))).collect();
        Ok(Self { path: path.to_owned(), infos, views, storages })
    }

    fn read_view(&self, view: &TensorView) -> Result<HostTensor, String> {
        let dtype = float_type(&view.kind)
            .ok_or_else(|| format!("its type is {}; weights must be floats", view.kind))?;
        let place = self
            .storages
            .get(&view.storage)
            .ok_or_else(|| format!("its storage {} is not in the file", view.storage))?;
        let numel = place.bytes / dtype.size() as u64;
        let overflow = || "its shape does not fit its storage; the file is damaged".to_owned();
        let mut count = 1u64;
        let mut reach = 0u64;
        for (side, stride) in view.shape.iter().zip(&view.strides) {
            count = count.checked_mul(*side as u64).ok_or_else(overflow)?;
            let last = (*side as u64).saturating_sub(1);
            let step = last.checked_mul(*stride).ok_or_else(overflow)?;
            reach = reach.checked_add(step).ok_or_else(overflow)?;
        }
        let end = view.offset.checked_add(reach).ok_or_else(overflow)?;
        // A view larger than its storage repeats values: no weight does, but a hostile file may.
        if count > numel || (count > 0 && end >= numel) {
            return Err(overflow());
        }
        let span = if count == 0 { 0 } else { reach + 1 };
        let mut bytes = vec![0; span as usize * dtype.size()];
        let mut file = File::open(&self.path).map_err(|error| error.to_string())?;
        file.seek(SeekFrom::Start(place.offset + view.offset * dtype.size() as u64))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| format!("cannot be read: {error}"))?;
        if !contiguous(view) {
            bytes = gather(&bytes, &view.shape, &view.strides, dtype.size(), count as usize);
        }
        HostTensor::read_le(view.shape.clone(), dtype, &mut &bytes[..])
            .map_err(|error| format!("cannot be read: {error}"))
    }
}

fn truncated(key: &str, size: u64) -> String {
    format!("storage {key} ends beyond the file's {size} bytes; the file is truncated")
}

fn float_type(kind: &str) -> Option<FloatType> {
    match kind {
        "torch FloatStorage" => Some(FloatType::F32),
        "torch HalfStorage" => Some(FloatType::F16),
        "torch BFloat16Storage" => Some(FloatType::Bf16),
        _ => None,
    }
}

fn element_size(kind: &str) -> Option<u64> {
    Some(match kind {
        "torch FloatStorage" | "torch IntStorage" => 4,
        "torch HalfStorage" | "torch BFloat16Storage" | "torch ShortStorage" => 2,
        "torch LongStorage" | "torch DoubleStorage" => 8,
        "torch ByteStorage" | "torch CharStorage" | "torch BoolStorage" => 1,
        _ => return None,
    })
}

fn contiguous(view: &TensorView) -> bool {
    let mut expected = 1;
    for (side, stride) in view.shape.iter().zip(&view.strides).rev() {
        if *side > 1 && *stride != expected {
            return false;
        }
        expected = expected.saturating_mul(*side as u64);
    }
    true
}

/// Row-major bytes of a strided view.
fn gather(bytes: &[u8], shape: &[usize], strides: &[u64], size: usize, count: usize) -> Vec<u8> {
    let mut result = Vec::with_capacity(count * size);
    let mut index = vec![0usize; shape.len()];
    for _ in 0..count {
        let at: usize = index.iter().zip(strides).map(|(i, stride)| i * *stride as usize).sum();
        result.extend_from_slice(&bytes[at * size..(at + 1) * size]);
        for side in (0..shape.len()).rev() {
            index[side] += 1;
            if index[side] < shape[side] {
                break;
            }
            index[side] = 0;
        }
    }
    result
}

/// All tensors of a dictionary, those of inner dictionaries with dotted names.
fn views(machine: &Machine, root: Id) -> Result<BTreeMap<String, TensorView>, String> {
    let mut found = BTreeMap::new();
    let mut open = vec![(String::new(), root, 0)];
    // Each dictionary once: a cycle ends here, and shared ones are not unfolded again and again.
    let mut seen = BTreeSet::new();
    while let Some((prefix, id, depth)) = open.pop() {
        let Value::Dict(items) = &machine.values[id] else {
            if prefix.is_empty() {
                return Err("this holds no dictionary of tensors; save a state_dict".into());
            }
            continue;
        };
        if depth > DEEPEST || !seen.insert(id) {
            continue;
        }
        for (key, value) in items {
            let Some(key) = machine.text(*key) else { continue };
            let name = if prefix.is_empty() { key.to_owned() } else { format!("{prefix}.{key}") };
            if name.len() > LONGEST_NAME {
                return Err(format!("a name of {} bytes; the file is damaged", name.len()));
            }
            match &machine.values[*value] {
                Value::Dict(_) => open.push((name, *value, depth + 1)),
                Value::Tensor { storage, offset, shape, strides } => {
                    let Value::Storage { kind, key, .. } = &machine.values[*storage] else {
                        return Err(format!("tensor `{name}` has no storage"));
                    };
                    let view = TensorView {
                        storage: key.clone(),
                        kind: kind.clone(),
                        offset: *offset,
                        shape: shape.clone(),
                        strides: strides.clone(),
                    };
                    found.insert(name, view);
                }
                _ => {}
            }
        }
    }
    Ok(found)
}

impl WeightSource for PickleWeights {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn read(&self, key: &str) -> Result<HostTensor, ImportError> {
        let view = self
            .views
            .get(key)
            .ok_or_else(|| ImportError::tensor(&self.path, key, "there is no such tensor"))?;
        self.read_view(view).map_err(|problem| ImportError::tensor(&self.path, key, problem))
    }
}
