//! Puts a checkpoint's tensors into a module, parameter by parameter, and keeps the account.

use std::collections::BTreeSet;

use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::Tensor;
use dualspeed_ops::Backend;

use super::error::ImportError;
use super::source::WeightSource;
use super::tensor::{FloatType, HostTensor};
use crate::nn::params::ParamPath;

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// Parameters filled.
    pub tensors: usize,
    /// Bytes read.
    pub bytes: u64,
}

/// What has been used and what not.
#[derive(Debug, Default)]
pub(crate) struct KeyLedger {
    /// Paths of the source that no parameter has taken yet.
    pub unused: BTreeSet<String>,
    /// Parameters the source has nothing for.
    pub missing: Vec<String>,
    /// What was read.
    pub loaded: Loaded,
}

impl KeyLedger {
    /// Nothing used yet.
    pub fn new(source: &dyn WeightSource) -> Self {
        Self { unused: source.tensors().keys().cloned().collect(), ..Self::default() }
    }

    /// Closes the account.
    ///
    /// # Errors
    /// [`ImportError::Mismatch`] if a parameter was not filled or a tensor not used.
    pub fn close(self, source: &dyn WeightSource) -> Result<Loaded, ImportError> {
        if self.missing.is_empty() && self.unused.is_empty() {
            return Ok(self.loaded);
        }
        let key = |path: String| source.tensors().get(&path).map_or(path, |info| info.key.clone());
        Err(ImportError::Mismatch {
            path: source.path().to_owned(),
            missing: self.missing,
            unused: self.unused.into_iter().map(key).collect(),
        })
    }
}

/// Fills every parameter of `module` from the tensor that `source` has for `root.path`, and takes it out of `unused`.
/// Linear layers and adapters are turned from PyTorch's `[out, in]`. `dtype` is what the weights become; `None` keeps the
/// file's precision.
///
/// Ids and gradient flags stay; lazy parameters are never initialised. Paths without a tensor are added to `missing`.
///
/// # Errors
/// [`ImportError::Tensor`] names the first tensor that cannot be read or has another shape.
pub(crate) fn fill<B: Backend, M: Module<B>>(
    module: M,
    root: &str,
    source: &dyn WeightSource,
    ledger: &mut KeyLedger,
    dtype: Option<FloatType>,
) -> Result<M, ImportError> {
    let mut filler = Filler { source, ledger, dtype, walk: ParamPath::new(root), error: None };
    let module = module.map(&mut filler);
    match filler.error {
        Some(error) => Err(error),
        None => Ok(module),
    }
}

/// Fills one part of a model from tensors named by path, all of which must be of that part.
///
/// # Errors
/// [`ImportError`] if a parameter has no tensor or a tensor no parameter, or one has another shape or cannot be read.
pub fn fill_part<B: Backend, M: Module<B>>(
    module: M,
    root: &str,
    source: &dyn WeightSource,
    dtype: Option<FloatType>,
) -> Result<M, ImportError> {
    let mut ledger = KeyLedger::new(source);
    let module = fill(module, root, source, &mut ledger, dtype)?;
    ledger.close(source)?;
    Ok(module)
}

/// Fills those parameters of a part of a model that there are tensors for, and leaves the others alone.
///
/// # Errors
/// As [`fill_part`], but for parameters without a tensor.
pub(super) fn fill_present<B: Backend, M: Module<B>>(
    module: M,
    root: &str,
    source: &dyn WeightSource,
    dtype: Option<FloatType>,
) -> Result<M, ImportError> {
    let mut ledger = KeyLedger::new(source);
    ledger.unused.retain(|path| path.split('.').next() == Some(root));
    if ledger.unused.is_empty() {
        return Ok(module);
    }
    let module = fill(module, root, source, &mut ledger, dtype)?;
    ledger.missing.clear();
    ledger.close(source)?;
    Ok(module)
}

struct Filler<'a> {
    source: &'a dyn WeightSource,
    ledger: &'a mut KeyLedger,
    dtype: Option<FloatType>,
    walk: ParamPath,
    error: Option<ImportError>,
}

impl Filler<'_> {
    /// Reads what belongs at the current path, in Burn's layout; `None` if there is nothing or after an error.
    fn tensor(&mut self, shape: &[usize]) -> Option<HostTensor> {
        if self.error.is_some() {
            return None;
        }
        let path = self.walk.path();
        if !self.ledger.unused.remove(&path) {
            self.ledger.missing.push(path);
            return None;
        }
        match self.read(&path, shape) {
            Ok(tensor) => Some(tensor),
            Err(error) => {
                self.error = Some(error);
                None
            }
        }
    }

    fn read(&mut self, path: &str, shape: &[usize]) -> Result<HostTensor, ImportError> {
        let info = &self.source.tensors()[path];
        let turned = self.walk.is_transposed(shape.len());
        let expected: Vec<usize> =
            if turned { shape.iter().rev().copied().collect() } else { shape.to_vec() };
        if info.shape != expected {
            let problem = format!(
                "its shape is {:?}, the configuration asks for {expected:?}; do weights and config.json belong \
                 together?",
                info.shape
            );
            return Err(ImportError::tensor(&info.path, &info.key, problem));
        }
        let tensor = match turned {
            true => self.source.read_transposed(path)?,
            false => self.source.read(path)?,
        };
        self.ledger.loaded.tensors += 1;
        self.ledger.loaded.bytes += (tensor.len() * tensor.dtype().size()) as u64;
        Ok(match self.dtype {
            Some(dtype) => tensor.cast(dtype),
            None => tensor,
        })
    }
}

impl<B: Backend> ModuleMapper<B> for Filler<'_> {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.walk.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.walk.exit();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let shape = param.lazy_shape();
        match self.tensor(&shape.to_vec()) {
            Some(tensor) => {
                let (id, device, dtype) = (param.id, param.lazy_device(), tensor.dtype().dtype());
                let value = Tensor::from_data(tensor.into_data(), (&device, dtype));
                param.transform_for_load(value, id)
            }
            None => param,
        }
    }
}
