//! A state dictionary as `torch.save` writes it: a zip archive of a pickle that lists the tensors, and a file for each one's values.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use dualspeed_core::files;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use super::write::failed;
use crate::error::ModelError;
use crate::formats::import::tensor::{FloatType, HostTensor, Values};

/// Writes named tensors as an ordered dictionary that `torch.load` reads, with `weights_only` too.
pub(super) fn write_pickle(
    path: &Path,
    tensors: &BTreeMap<String, HostTensor>,
) -> Result<(), ModelError> {
    files::write_whole(path, |partial| {
        let mut archive = ZipWriter::new(std::fs::File::create(partial)?);
        // PyTorch wants every file's bytes as they are, and begins each at a multiple of 64.
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .with_alignment(64);
        let mut entry = |name: &str, bytes: &[u8]| {
            archive.start_file(format!("archive/{name}"), options)?;
            archive.write_all(bytes)
        };
        entry("data.pkl", &list(tensors))?;
        entry("byteorder", b"little")?;
        for (index, tensor) in tensors.values().enumerate() {
            entry(&format!("data/{index}"), &bytes(tensor))?;
        }
        entry("version", b"3\n")?;
        archive.finish()?;
        Ok::<(), std::io::Error>(())
    })
    .map_err(|error| failed(path, error))
}

fn bytes(tensor: &HostTensor) -> Vec<u8> {
    match &tensor.values {
        Values::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::F16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::Bf16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
    }
}

/// The pickle, protocol 2: `OrderedDict([(name, _rebuild_tensor_v2(storage, 0, shape, strides, False, OrderedDict()))])`.
fn list(tensors: &BTreeMap<String, HostTensor>) -> Vec<u8> {
    let mut out = vec![0x80, 2];
    ordered_dict(&mut out);
    out.push(b'(');
    for (index, (name, tensor)) in tensors.iter().enumerate() {
        text(&mut out, name);
        out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n(");
        storage(&mut out, index, tensor);
        int(&mut out, 0);
        tuple(&mut out, &tensor.shape);
        tuple(&mut out, &strides(&tensor.shape));
        out.push(0x89);
        ordered_dict(&mut out);
        out.extend(b"tR");
    }
    out.extend(b"u.");
    out
}

/// A persistent id: `("storage", torch.FloatStorage, "0", "cpu", 6)`.
fn storage(out: &mut Vec<u8>, index: usize, tensor: &HostTensor) {
    let kind: &[u8] = match tensor.dtype() {
        FloatType::F32 => b"ctorch\nFloatStorage\n",
        FloatType::F16 => b"ctorch\nHalfStorage\n",
        FloatType::Bf16 => b"ctorch\nBFloat16Storage\n",
    };
    out.push(b'(');
    text(out, "storage");
    out.extend(kind);
    text(out, &index.to_string());
    text(out, "cpu");
    int(out, tensor.len());
    out.extend(b"tQ");
}

fn ordered_dict(out: &mut Vec<u8>) {
    out.extend(b"ccollections\nOrderedDict\n)R");
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.push(b'X');
    out.extend((text.len() as u32).to_le_bytes());
    out.extend(text.as_bytes());
}

fn int(out: &mut Vec<u8>, value: usize) {
    match i32::try_from(value) {
        Ok(small) => {
            out.push(b'J');
            out.extend(small.to_le_bytes());
        }
        Err(_) => {
            out.extend([0x8a, 8]);
            out.extend((value as u64).to_le_bytes());
        }
    }
}

fn tuple(out: &mut Vec<u8>, values: &[usize]) {
    out.push(b'(');
    values.iter().for_each(|value| int(out, *value));
    out.push(b't');
}

fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; shape.len()];
    for side in (1..shape.len()).rev() {
        strides[side - 1] = strides[side] * shape[side];
    }
    strides
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::formats::import::pickle::PickleWeights;
    use crate::formats::import::source::WeightSource;

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mm_projector.bin");
        let whole = HostTensor::f32(vec![2, 3], vec![0.5, -1.0, 2.0, 3.0, 4.0, f32::MIN_POSITIVE]);
        let half = HostTensor { shape: vec![2], values: Values::Bf16(vec![bf16::ONE, bf16::PI]) };
        let tensors = BTreeMap::from([("a.weight".to_owned(), whole), ("b".to_owned(), half)]);
        write_pickle(&path, &tensors).unwrap();
        let read = PickleWeights::open(&path).unwrap();
        assert_eq!(read.tensors().len(), 2);
        for (name, tensor) in &tensors {
            assert_eq!(&read.read(name).unwrap(), tensor, "{name}");
        }
    }
}
