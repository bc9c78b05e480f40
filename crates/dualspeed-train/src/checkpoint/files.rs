//! The files of one checkpoint: written whole, read back and checked.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Seek, SeekFrom};
use std::path::Path;

use dualspeed_core::files;
use safetensors::Dtype;
use safetensors::tensor::{Metadata, SafeTensorError};
use serde::Deserialize;

use super::checksums::{Checksums, MODEL_PREFIX};
use super::state::CheckpointState;
use super::tensor::HostTensor;
use super::{CHECKSUMS, FORMAT, STATE, TENSORS};
use crate::error::TrainError;

/// Which tensors of a checkpoint are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// The parameters, for inference.
    Model,
    /// The parameters and the moments of the optimiser, for more training.
    All,
}

/// Writes the files of a checkpoint into a new directory, and waits until they are on disk.
///
/// # Errors
/// `TrainError::Io`; a directory that is half-written is left.
pub(super) fn write(
    dir: &Path,
    state: &CheckpointState,
    tensors: &BTreeMap<String, HostTensor>,
) -> Result<(), TrainError> {
    let bad =
        |path: &Path, problem: String| TrainError::BadCheckpoint { path: path.to_owned(), problem };
    fs::create_dir_all(dir).map_err(TrainError::io("create", dir))?;
    let path = dir.join(TENSORS);
    safetensors::serialize_to_file(tensors, None, &path).map_err(|error| match error {
        SafeTensorError::IoError(source) => TrainError::io("write", &path)(source),
        other => bad(&path, other.to_string()),
    })?;
    files::sync_file(&path).map_err(TrainError::io("sync", &path))?;
    let path = dir.join(STATE);
    let text = serde_json::to_vec_pretty(state).map_err(|error| bad(&path, error.to_string()))?;
    files::write_synced(&path, &text).map_err(TrainError::io("write", &path))?;
    let path = dir.join(CHECKSUMS);
    let checksums = serde_json::to_vec_pretty(&Checksums::of(&text, tensors));
    let checksums = checksums.map_err(|error| bad(&path, error.to_string()))?;
    files::write_synced(&path, &checksums).map_err(TrainError::io("write", &path))?;
    files::sync_dir(dir).map_err(TrainError::io("sync", dir))
}

/// The version of a state's layout, whatever else is in it.
#[derive(Deserialize)]
struct Format {
    format: u32,
}

/// Reads one checkpoint directory, and checks every byte of what it reads.
///
/// # Errors
/// `CheckpointFormat` when another version wrote it, `BadCheckpoint` when a file is missing or damaged, `Io` when one cannot be read.
pub fn load(
    dir: &Path,
    contents: Contents,
) -> Result<(CheckpointState, BTreeMap<String, HostTensor>), TrainError> {
    let bad = |problem: String| TrainError::BadCheckpoint { path: dir.to_owned(), problem };
    let (state, checksums) = read_state(dir)?;
    let state: CheckpointState =
        serde_json::from_slice(&state).map_err(|error| bad(format!("{STATE}: {error}")))?;
    let tensors = read_tensors(dir, contents)?;
    let checked = checksums.check_tensors(&tensors, contents == Contents::Model);
    checked.map_err(|problem| bad(format!("{TENSORS}: {problem}")))?;
    Ok((state, tensors))
}

/// Identifies the weights of a checkpoint by what its checksums say, without reading them.
///
/// # Errors
/// As [`load`].
pub(super) fn model_digest(dir: &Path) -> Result<String, TrainError> {
    Ok(read_state(dir)?.1.model())
}

/// The text of a checkpoint's state, which is whole and of this version, and the checksums.
pub(super) fn read_state(dir: &Path) -> Result<(Vec<u8>, Checksums), TrainError> {
    let bad = |problem: String| TrainError::BadCheckpoint { path: dir.to_owned(), problem };
    let state = read(dir, STATE)?;
    let checksums = match read(dir, CHECKSUMS) {
        Ok(text) => {
            let read: Checksums = serde_json::from_slice(&text)
                .map_err(|error| bad(format!("{CHECKSUMS}: {error}")))?;
            read.check_state(&state).map_err(|problem| bad(format!("{STATE}: {problem}")))?;
            Ok(read)
        }
        Err(error) => Err(error),
    };
    // The format before what else is wrong, so that a checkpoint of another version is called that and not damaged.
    let Format { format } =
        serde_json::from_slice(&state).map_err(|error| bad(format!("{STATE}: {error}")))?;
    if format != FORMAT {
        let (path, found, expected) = (dir.to_owned(), format, FORMAT);
        return Err(TrainError::CheckpointFormat { path, found, expected });
    }
    Ok((state, checksums?))
}

/// Reads a file of a checkpoint. What is not there, or no file, is damage: the directory was complete when it was made.
fn read(dir: &Path, name: &str) -> Result<Vec<u8>, TrainError> {
    let path = dir.join(name);
    let bytes = fs::read(&path).map_err(|error| unreadable(dir, &path, name, error))?;
    match bytes.is_empty() {
        true => Err(TrainError::BadCheckpoint {
            path: dir.to_owned(),
            problem: format!("{name} is empty"),
        }),
        false => Ok(bytes),
    }
}

fn unreadable(dir: &Path, path: &Path, name: &str, error: std::io::Error) -> TrainError {
    let problem = match error.kind() {
        ErrorKind::NotFound => format!("{name} is missing"),
        ErrorKind::PermissionDenied => return TrainError::io("read", path)(error),
        _ => format!("{name} cannot be read: {error}"),
    };
    TrainError::BadCheckpoint { path: dir.to_owned(), problem }
}

/// Reads tensors one after the other: there is one copy of them in memory.
fn read_tensors(
    dir: &Path,
    contents: Contents,
) -> Result<BTreeMap<String, HostTensor>, TrainError> {
    let bad = |problem: String| TrainError::BadCheckpoint {
        path: dir.to_owned(),
        problem: format!("{TENSORS}: {problem}"),
    };
    let path = dir.join(TENSORS);
    let unreadable = |error| unreadable(dir, &path, TENSORS, error);
    let mut file = File::open(&path).map_err(unreadable)?;
    let length = file.metadata().map_err(unreadable)?.len();
    let header = read_header(&mut file, length).map_err(bad)?;
    let metadata: Metadata =
        serde_json::from_slice(&header).map_err(|error| bad(error.to_string()))?;
    let begin = 8 + header.len() as u64;
    let written = begin + metadata.data_len() as u64;
    if length != written {
        return Err(bad(format!("it has {length} bytes, written were {written}")));
    }
    let mut tensors = BTreeMap::new();
    let mut infos: Vec<_> = metadata.tensors().into_iter().collect();
    // In the order of the file.
    infos.sort_by_key(|(_, info)| info.data_offsets);
    let mut position = 0;
    for (name, info) in infos {
        if contents == Contents::Model && !name.starts_with(MODEL_PREFIX) {
            continue;
        }
        if info.dtype != Dtype::F32 {
            return Err(bad(format!("`{name}` is {:?}, not F32", info.dtype)));
        }
        let (start, end) = info.data_offsets;
        if start != position {
            file.seek(SeekFrom::Start(begin + start as u64)).map_err(unreadable)?;
        }
        let mut values = vec![0f32; (end - start) / 4];
        file.read_exact(bytemuck::cast_slice_mut(&mut values)).map_err(unreadable)?;
        if cfg!(target_endian = "big") {
            for value in &mut values {
                *value = f32::from_bits(value.to_bits().swap_bytes());
            }
        }
        position = end;
        tensors.insert(name, HostTensor { shape: info.shape.clone(), values });
    }
    Ok(tensors)
}

/// The header, which follows its length of 8 bytes.
fn read_header(file: &mut File, length: u64) -> Result<Vec<u8>, String> {
    let short = |error: std::io::Error| format!("the file ends within its header ({error})");
    let mut size = [0; 8];
    file.read_exact(&mut size).map_err(short)?;
    let size = u64::from_le_bytes(size);
    if size > length.saturating_sub(8) {
        return Err(format!("its header is said to have {size} bytes, the file has {length}"));
    }
    let mut header = vec![0; size as usize];
    file.read_exact(&mut header).map_err(short)?;
    Ok(header)
}
