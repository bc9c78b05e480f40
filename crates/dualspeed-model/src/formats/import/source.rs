//! Where weights come from: named tensors, read one at a time.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::error::ImportError;
use super::tensor::HostTensor;

/// What a file says about one of its tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The file it lies in.
    pub path: PathBuf,
    /// Its name there.
    pub key: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its element type as the file calls it, e.g. `BF16` or `Q4_1`.
    pub dtype: String,
}

/// Named tensors in files. Nothing but headers is held in memory; a tensor is read when asked for.
pub trait WeightSource: Send + Sync {
    /// The file or directory, for messages.
    fn path(&self) -> &Path;

    /// All tensors by name.
    fn tensors(&self) -> &BTreeMap<String, TensorInfo>;

    /// Reads one tensor.
    ///
    /// # Errors
    /// [`ImportError`] if there is none of that name, its type is no float, or the file ends early.
    fn read(&self, key: &str) -> Result<HostTensor, ImportError>;

    /// Reads one tensor; a matrix with its rows and columns exchanged.
    ///
    /// # Errors
    /// As [`WeightSource::read`].
    fn read_transposed(&self, key: &str) -> Result<HostTensor, ImportError> {
        Ok(self.read(key)?.transposed())
    }
}

/// Tensors held in memory: a pickle that was read, or a test.
#[derive(Clone, Debug, Default)]
pub struct MemoryWeights {
    path: PathBuf,
    infos: BTreeMap<String, TensorInfo>,
    tensors: BTreeMap<String, HostTensor>,
}

impl MemoryWeights {
    /// Tensors that came from `path`.
    pub fn new(path: impl Into<PathBuf>, tensors: BTreeMap<String, HostTensor>) -> Self {
        let path = path.into();
        let info = |key: &String, tensor: &HostTensor| TensorInfo {
            path: path.clone(),
            key: key.clone(),
            shape: tensor.shape.clone(),
            dtype: format!("{:?}", tensor.dtype()).to_uppercase(),
        };
        let infos = tensors.iter().map(|(key, tensor)| (key.clone(), info(key, tensor))).collect();
        Self { path, infos, tensors }
    }
}

impl WeightSource for MemoryWeights {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn read(&self, key: &str) -> Result<HostTensor, ImportError> {
        self.tensors
            .get(key)
            .cloned()
            .ok_or_else(|| ImportError::tensor(&self.path, key, "there is no such tensor"))
    }
}

/// Several sources as one; of equal names the later source's counts.
pub struct Layered {
    path: PathBuf,
    infos: BTreeMap<String, TensorInfo>,
    layers: Vec<Box<dyn WeightSource>>,
}

impl Layered {
    /// Puts later layers over earlier ones; `path` is what messages call the whole.
    pub fn new(path: impl Into<PathBuf>, layers: Vec<Box<dyn WeightSource>>) -> Self {
        let infos = layers.iter().flat_map(|layer| layer.tensors().clone()).collect();
        Self { path: path.into(), infos, layers }
    }

    fn layer(&self, key: &str) -> Result<&dyn WeightSource, ImportError> {
        let layer = self.layers.iter().rev().find(|layer| layer.tensors().contains_key(key));
        let missing = || ImportError::tensor(&self.path, key, "there is no such tensor");
        layer.map(|layer| &**layer).ok_or_else(missing)
    }
}

impl WeightSource for Layered {
    fn path(&self) -> &Path {
        &self.path
    }

    fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.infos
    }

    fn read(&self, key: &str) -> Result<HostTensor, ImportError> {
        self.layer(key)?.read(key)
    }

    fn read_transposed(&self, key: &str) -> Result<HostTensor, ImportError> {
        self.layer(key)?.read_transposed(key)
    }
}
