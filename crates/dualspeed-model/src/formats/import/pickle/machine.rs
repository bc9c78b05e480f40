//! Python's pickle language, as far as PyTorch uses it to list tensors, and not an instruction further.
//!
//! Nothing is ever called: the few functions that PyTorch's files name are recognised and become descriptions of tensors,
//! any other is an error that names it. Values live in an arena and refer to each other by index, so a cyclic pickle
//! cannot make anything recurse, and every instruction makes at most one value, so a small file cannot make many.

use std::collections::HashMap;
use std::io::Read;

/// Text or bytes longer than this in a list of tensors are no names.
const LONGEST_TEXT: u64 = 1 << 16;

/// Index of a value in the arena.
pub(super) type Id = usize;

/// A value of the machine.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// A number that is no 64-bit integer, or bytes: nothing here needs its value.
    Opaque,
    Text(String),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// `module name`, not imported.
    Global(String),
    Storage {
        kind: String,
        key: String,
        numel: u64,
    },
    Tensor {
        storage: Id,
        offset: u64,
        shape: Vec<usize>,
        strides: Vec<u64>,
    },
}

/// Values made by one or more pickles that stand one after another.
#[derive(Debug, Default)]
pub(super) struct Machine {
    pub values: Vec<Value>,
}

/// Reads bytes and counts them.
pub(super) struct Input<R> {
    pub reader: R,
    pub position: u64,
}

impl<R: Read> Input<R> {
    pub fn new(reader: R) -> Self {
        Self { reader, position: 0 }
    }

    pub fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.reader
            .read_exact(&mut bytes)
            .map_err(|error| format!("the pickle ends early at byte {}: {error}", self.position))?;
        self.position += N as u64;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.array::<1>()?[0])
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>, String> {
        if length > LONGEST_TEXT {
            return Err(format!("a text of {length} bytes at byte {}: damaged?", self.position));
        }
        let mut bytes = Vec::new();
        let read = self.reader.by_ref().take(length).read_to_end(&mut bytes);
        let read = read.map_err(|error| error.to_string())?;
        self.position += read as u64;
        if read as u64 != length {
            return Err(format!("the pickle ends early at byte {}", self.position));
        }
        Ok(bytes)
    }

    fn text(&mut self, length: u64) -> Result<Value, String> {
        let bytes = self.bytes(length)?;
        String::from_utf8(bytes).map(Value::Text).map_err(|error| error.to_string())
    }

    fn line(&mut self) -> Result<String, String> {
        let mut line = Vec::new();
        loop {
            match self.byte()? {
                b'\n' => break,
                _ if line.len() as u64 > LONGEST_TEXT => return Err("an endless line".into()),
                byte => line.push(byte),
            }
        }
        String::from_utf8(line).map_err(|error| error.to_string())
    }
}

/// The running state of one pickle.
struct Run<'a, R> {
    machine: &'a mut Machine,
    input: &'a mut Input<R>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl Machine {
    /// Runs one pickle up to its STOP; returns what it leaves.
    pub fn run<R: Read>(&mut self, input: &mut Input<R>) -> Result<Id, String> {
        let run = Run {
            machine: self,
            input,
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        };
        run.run()
    }

    pub fn text(&self, id: Id) -> Option<&str> {
        match &self.values[id] {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn int(&self, id: Id) -> Option<u64> {
        match self.values[id] {
            Value::Int(value) => u64::try_from(value).ok(),
            _ => None,
        }
    }

    fn ints(&self, id: Id) -> Option<Vec<u64>> {
        match &self.values[id] {
            Value::Tuple(ids) | Value::List(ids) => ids.iter().map(|id| self.int(*id)).collect(),
            _ => None,
        }
    }
}

impl<R: Read> Run<'_, R> {
    fn run(mut self) -> Result<Id, String> {
        loop {
            let at = self.input.position;
            let op = self.input.byte()?;
            if op == b'.' {
                return self.pop();
            }
            self.step(op).map_err(|problem| format!("at byte {at}: {problem}"))?;
        }
    }

    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            0x80 => drop(self.input.byte()?),
            0x95 => drop(self.input.array::<8>()?),
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.take_to_mark()?),
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' => {
                let value = i32::from_le_bytes(self.input.array()?);
                self.push(Value::Int(value.into()));
            }
            b'K' => {
                let value = self.input.byte()?;
                self.push(Value::Int(value.into()));
            }
            b'M' => {
                let value = u16::from_le_bytes(self.input.array()?);
                self.push(Value::Int(value.into()));
            }
            0x8a => {
                let length = self.input.byte()?;
                self.long(length.into())?;
            }
            0x8b => {
                let length = u32::from_le_bytes(self.input.array()?);
                self.long(length.into())?;
            }
            b'G' => {
                self.input.array::<8>()?;
                self.push(Value::Opaque);
            }
            b'X' | b'T' => {
                let length = u32::from_le_bytes(self.input.array()?);
                let text = self.input.text(length.into())?;
                self.push(text);
            }
            0x8c | b'U' => {
                let length = self.input.byte()?;
                let text = self.input.text(length.into())?;
                self.push(text);
            }
            0x8d => {
                let length = u64::from_le_bytes(self.input.array()?);
                let text = self.input.text(length)?;
                self.push(text);
            }
            b'B' => {
                let length = u32::from_le_bytes(self.input.array()?);
                self.input.bytes(length.into())?;
                self.push(Value::Opaque);
            }
            b'C' => {
                let length = self.input.byte()?;
                self.input.bytes(length.into())?;
                self.push(Value::Opaque);
            }
            b')' => self.push(Value::Tuple(Vec::new())),
            b']' => self.push(Value::List(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b't' => {
                let items = self.take_to_mark()?;
                self.push(Value::Tuple(items));
            }
            b'l' => {
                let items = self.take_to_mark()?;
                self.push(Value::List(items));
            }
            0x85..=0x87 => {
                let count = usize::from(op - 0x84);
                let from = self.stack.len().checked_sub(count).ok_or("the stack is empty")?;
                let items = self.stack.split_off(from);
                self.push(Value::Tuple(items));
            }
            b'a' => {
                let item = self.pop()?;
                self.extend_list(vec![item])?;
            }
            b'e' => {
                let items = self.take_to_mark()?;
                self.extend_list(items)?;
            }
            b's' => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.extend_dict(&[key, value])?;
            }
            b'u' => {
                let items = self.take_to_mark()?;
                self.extend_dict(&items)?;
            }
            b'c' => {
                let (module, name) = (self.input.line()?, self.input.line()?);
                self.push(Value::Global(format!("{module} {name}")));
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let name = match (self.machine.text(module), self.machine.text(name)) {
                    (Some(module), Some(name)) => format!("{module} {name}"),
                    _ => return Err("a global without a name".into()),
                };
                self.push(Value::Global(name));
            }
            b'q' => {
                let slot = self.input.byte()?;
                self.remember(slot.into())?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.input.array()?);
                self.remember(slot)?;
            }
            0x94 => {
                let slot = self.memo.len() as u32;
                self.remember(slot)?;
            }
            b'h' => {
                let slot = self.input.byte()?;
                self.recall(slot.into())?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.input.array()?);
                self.recall(slot)?;
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(storage);
            }
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let made = self.recognise(function, arguments)?;
                self.stack.push(made);
            }
            // The state of an object: of a dictionary with attributes, nothing that is a tensor.
            b'b' => drop(self.pop()?),
            other => {
                return Err(format!(
                    "instruction {other:#04x} has no place in a list of tensors; was this saved by torch.save of a \
                     state_dict?"
                ));
            }
        }
        Ok(())
    }

    fn push(&mut self, value: Value) {
        self.stack.push(self.machine.values.len());
        self.machine.values.push(value);
    }

    fn pop(&mut self) -> Result<Id, String> {
        if self.marks.last().is_some_and(|mark| *mark >= self.stack.len()) {
            return Err("the stack is empty up to the mark".into());
        }
        self.stack.pop().ok_or_else(|| "the stack is empty".into())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "the stack is empty".into())
    }

    fn take_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("there is no mark")?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn long(&mut self, length: u64) -> Result<(), String> {
        let bytes = self.input.bytes(length)?;
        let value = if bytes.len() <= 8 {
            let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
            let mut wide = [if negative { 0xff } else { 0 }; 8];
            wide[..bytes.len()].copy_from_slice(&bytes);
            Value::Int(i64::from_le_bytes(wide))
        } else {
            Value::Opaque
        };
        self.push(value);
        Ok(())
    }

    fn extend_list(&mut self, items: Vec<Id>) -> Result<(), String> {
        let list = self.top()?;
        match &mut self.machine.values[list] {
            Value::List(old) => old.extend(items),
            _ => return Err("an append to what is no list".into()),
        }
        Ok(())
    }

    fn extend_dict(&mut self, items: &[Id]) -> Result<(), String> {
        let dict = self.top()?;
        match &mut self.machine.values[dict] {
            Value::Dict(old) => {
                old.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            _ => Err("an item set in what is no dictionary".into()),
        }
    }

    fn remember(&mut self, slot: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), String> {
        let id = *self.memo.get(&slot).ok_or("a value that was never remembered")?;
        self.stack.push(id);
        Ok(())
    }

    /// `('storage', torch.FloatStorage, key, location, numel, ..)`.
    fn storage(&self, id: Id) -> Result<Value, String> {
        let Value::Tuple(parts) = &self.machine.values[id] else {
            return Err("a persistent id that is no tuple".into());
        };
        let [tag, kind, key, _location, numel, ..] = parts[..] else {
            return Err("a storage of fewer than five parts".into());
        };
        match (self.machine.text(tag), &self.machine.values[kind], self.machine.text(key)) {
            (Some("storage"), Value::Global(kind), Some(key)) => Ok(Value::Storage {
                kind: kind.clone(),
                key: key.to_owned(),
                numel: self.machine.int(numel).ok_or("a storage without a size")?,
            }),
            _ => Err("a persistent id that is no storage".into()),
        }
    }

    /// What a call would have made.
    fn recognise(&mut self, function: Id, arguments: Id) -> Result<Id, String> {
        let Value::Global(name) = &self.machine.values[function] else {
            return Err("a call of what is no function".into());
        };
        let Value::Tuple(arguments) = &self.machine.values[arguments] else {
            return Err(format!("a call of {name} without arguments"));
        };
        let made = match name.as_str() {
            "collections OrderedDict" => Value::Dict(Vec::new()),
            "torch._utils _rebuild_parameter" => {
                return arguments.first().copied().ok_or_else(|| "a parameter of nothing".into());
            }
            "torch._utils _rebuild_tensor" | "torch._utils _rebuild_tensor_v2" => {
                let [storage, offset, shape, strides, ..] = arguments[..] else {
                    return Err("a tensor of fewer than four parts".into());
                };
                let offset = self.machine.int(offset).ok_or("a tensor without an offset")?;
                let shape = self.machine.ints(shape).ok_or("a tensor without a shape")?;
                let strides = self.machine.ints(strides).ok_or("a tensor without strides")?;
                let shape = shape.into_iter().map(usize::try_from).collect::<Result<Vec<_>, _>>();
                let shape = shape.map_err(|error| error.to_string())?;
                if shape.len() != strides.len() {
                    return Err("a tensor with more sides than strides, or fewer".into());
                }
                Value::Tensor { storage, offset, shape, strides }
            }
            other => {
                return Err(format!(
                    "it would call {}; nothing in a pickle is executed here, only tensors are read",
                    other.replace(' ', ".")
                ));
            }
        };
        self.machine.values.push(made);
        Ok(self.machine.values.len() - 1)
    }
}
