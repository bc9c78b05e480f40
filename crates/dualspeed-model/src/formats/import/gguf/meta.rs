//! GGUF's header: metadata and the list of tensors.

use std::collections::BTreeMap;
use std::io::Read;

/// Arrays in arrays, deeper than any writer goes.
const DEEPEST: usize = 3;
/// A tensor of more dimensions than ggml has.
const MOST_DIMENSIONS: u32 = 4;

/// A value of the metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum MetaValue {
    /// Whole numbers of any width.
    Int(i64),
    /// Numbers of either width.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    Text(String),
    /// Values of one type.
    Array(Vec<MetaValue>),
}

/// A tensor as the header lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Listed {
    pub name: String,
    /// Slowest first, as everywhere but in the file.
    pub shape: Vec<usize>,
    pub kind: u32,
    pub offset: u64,
}

/// What stands before the data.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Header {
    pub metadata: BTreeMap<String, MetaValue>,
    pub tensors: Vec<Listed>,
    /// Where the data begins.
    pub data: u64,
}

/// Reads a header from a file of `size` bytes. No count in it is believed beyond what the file can hold.
pub(super) fn read_header(reader: impl Read, size: u64) -> Result<Header, String> {
    let mut input = Input { reader, position: 0, size };
    if &input.array::<4>()? != b"GGUF" {
        return Err("this is no GGUF file".into());
    }
    let version = input.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("GGUF version {version} is not read; known are 2 and 3"));
    }
    let tensors = input.u64()?;
    let entries = input.u64()?;
    let mut metadata = BTreeMap::new();
    for _ in 0..entries {
        let key = input.text()?;
        let kind = input.u32()?;
        let value = input.value(kind, 0).map_err(|problem| format!("`{key}`: {problem}"))?;
        metadata.insert(key, value);
    }
    let mut listed = Vec::new();
    for _ in 0..tensors {
        let name = input.text()?;
        let dimensions = input.u32()?;
        if dimensions > MOST_DIMENSIONS {
            return Err(format!(
                "tensor `{name}` has {dimensions} dimensions; the file is damaged"
            ));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let side = usize::try_from(input.u64()?).map_err(|error| error.to_string())?;
            shape.insert(0, side);
        }
        let (kind, offset) = (input.u32()?, input.u64()?);
        listed.push(Listed { name, shape, kind, offset });
    }
    let alignment = match metadata.get("general.alignment") {
        Some(MetaValue::Int(n)) if *n > 0 => *n as u64,
        None => 32,
        Some(other) => return Err(format!("`general.alignment` is {other:?}")),
    };
    let data = input.position.checked_next_multiple_of(alignment);
    let data = data.ok_or("`general.alignment` overflows")?;
    Ok(Header { metadata, tensors: listed, data })
}

struct Input<R> {
    reader: R,
    position: u64,
    size: u64,
}

impl<R: Read> Input<R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.reader
            .read_exact(&mut bytes)
            .map_err(|_| format!("the file ends in its header, at byte {}", self.position))?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    /// A count of things of at least one byte each.
    fn count(&mut self) -> Result<u64, String> {
        let count = self.u64()?;
        let left = self.size.saturating_sub(self.position);
        if count > left {
            let at = self.position;
            return Err(format!("a length of {count} at byte {at}, but {left} bytes are left"));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<String, String> {
        let length = self.count()?;
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(length).read_to_end(&mut bytes);
        let read = read.map_err(|error| error.to_string())?;
        self.position += read as u64;
        if read as u64 != length {
            return Err(format!("the file ends in its header, at byte {}", self.position));
        }
        // Vocabularies hold pieces of characters.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn value(&mut self, kind: u32, depth: usize) -> Result<MetaValue, String> {
        Ok(match kind {
            0 => MetaValue::Int(self.array::<1>()?[0].into()),
            1 => MetaValue::Int((self.array::<1>()?[0] as i8).into()),
            2 => MetaValue::Int(u16::from_le_bytes(self.array()?).into()),
            3 => MetaValue::Int(i16::from_le_bytes(self.array()?).into()),
            4 => MetaValue::Int(self.u32()?.into()),
            5 => MetaValue::Int(i32::from_le_bytes(self.array()?).into()),
            6 => MetaValue::Float(f32::from_le_bytes(self.array()?).into()),
            7 => MetaValue::Bool(self.array::<1>()?[0] != 0),
            8 => MetaValue::Text(self.text()?),
            9 => {
                if depth == DEEPEST {
                    return Err("arrays in arrays in arrays; the file is damaged".into());
                }
                let inner = self.u32()?;
                let length = self.count()?;
                let mut items = Vec::new();
                for _ in 0..length {
                    items.push(self.value(inner, depth + 1)?);
                }
                MetaValue::Array(items)
            }
            10 => MetaValue::Int(i64::try_from(self.u64()?).unwrap_or(i64::MAX)),
            11 => MetaValue::Int(i64::from_le_bytes(self.array()?)),
            12 => MetaValue::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("a value of unknown type {other}")),
        })
    }
}
