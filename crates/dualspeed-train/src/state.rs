//! Trainable parameters as named host tensors, and back: what checkpoints hold.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};
use dualspeed_model::ParamPath;
use dualspeed_ops::to_f32;

use crate::checkpoint::{HostTensor, MODEL_PREFIX as PREFIX};

/// The parameters that take gradients, by `model.<path>`.
pub(crate) fn export_trainables<B: Backend, M: Module<B>>(
    module: &M,
) -> BTreeMap<String, HostTensor> {
    let mut exporter = Exporter { path: ParamPath::new(""), tensors: BTreeMap::new() };
    module.visit(&mut exporter);
    exporter.tensors
}

struct Exporter {
    path: ParamPath,
    tensors: BTreeMap<String, HostTensor>,
}

impl<B: Backend> ModuleVisitor<B> for Exporter {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        if value.is_require_grad() {
            let shape = value.dims().to_vec();
            let name = format!("{PREFIX}{}", self.path.path());
            self.tensors.insert(name, HostTensor { shape, values: to_f32(value) });
        }
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
}

/// Puts `model.<path>` tensors into the parameters of those paths, keeping ids, dtypes and gradient
/// flags.
///
/// # Errors
/// What does not fit: a tensor without a parameter, or of another shape.
pub(crate) fn import_trainables<B: Backend, M: Module<B>>(
    module: M,
    tensors: &BTreeMap<String, HostTensor>,
) -> Result<M, String> {
    let wanted =
        tensors.iter().filter_map(|(name, tensor)| Some((name.strip_prefix(PREFIX)?, tensor)));
    let mut importer =
        Importer { path: ParamPath::new(""), wanted: wanted.collect(), problem: None };
    let module = module.map(&mut importer);
    if let Some(problem) = importer.problem {
        return Err(problem);
    }
    match importer.wanted.keys().next() {
        Some(name) => Err(format!("the model has no parameter `{name}`")),
        None => Ok(module),
    }
}

struct Importer<'a> {
    path: ParamPath,
    wanted: BTreeMap<&'a str, &'a HostTensor>,
    problem: Option<String>,
}

impl<B: Backend> ModuleMapper<B> for Importer<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let path = self.path.path();
        let Some(found) = self.wanted.remove(path.as_str()) else { return param };
        let shape = param.shape();
        if shape.num_elements() != found.values.len() || param.dims().as_slice() != found.shape {
            let expected = param.dims();
            self.problem =
                Some(format!("`{path}` has shape {:?}, the model wants {expected:?}", found.shape));
            return param;
        }
        param.map(|tensor| {
            let requires_grad = tensor.is_require_grad();
            let options = (&tensor.device(), tensor.dtype());
            let data = TensorData::new(found.values.clone(), shape);
            Tensor::from_data(data, options).set_require_grad(requires_grad)
        })
    }

    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }
}
