//! The path of a parameter as checkpoints, records and optimisers know it.

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;
use dualspeed_ops::Backend;

/// The path of the parameter that a visitor or mapper is at. Every walk over a model uses this one, so that an importer, a
/// checkpoint and an optimiser call a parameter by the same name.
#[derive(Clone, Debug, Default)]
pub struct ParamPath {
    /// Names on the way, each with the container it is a field of.
    stack: Vec<(String, String)>,
}

impl ParamPath {
    /// Begins at a named part of the model; an empty name is the model itself.
    pub fn new(root: &str) -> Self {
        Self { stack: vec![(root.to_owned(), String::new())] }
    }

    /// Goes into a module: `ModuleVisitor::enter_module` and `ModuleMapper::enter_module`.
    pub fn enter(&mut self, name: &str, container: &str) {
        // An enum's variant is no place of its own: a checkpoint does not know that there are other kinds.
        let name = if container.starts_with("Enum:") { "" } else { name };
        self.stack.push((name.to_owned(), container.to_owned()));
    }

    /// Comes back out of it.
    pub fn exit(&mut self) {
        self.stack.pop();
    }

    /// The path so far, dots between names: `language_model.layers.0.self_attn.q_proj.weight`.
    pub fn path(&self) -> String {
        let names = self.stack.iter().map(|(name, _)| name.as_str());
        names.filter(|name| !name.is_empty()).collect::<Vec<_>>().join(".")
    }

    /// Whether a parameter of this rank is a matrix that PyTorch keeps as `[out, in]`.
    pub fn is_transposed(&self, rank: usize) -> bool {
        let container = self.stack.last().map_or("", |(_, container)| container.as_str());
        rank == 2 && matches!(container, "Struct:Linear" | "Struct:LoraPair")
    }
}

/// One parameter of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamInfo {
    /// Burn's id, the key of gradients; a hash of the path at initialisation.
    pub id: ParamId,
    /// The dotted path, the key of checkpoints.
    pub path: String,
    /// The shape, in Burn's layout.
    pub shape: Vec<usize>,
}

impl ParamInfo {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

/// Every float parameter of `module` below `root`, in the module's order. Initialises no lazy parameter.
pub fn parameters<B: Backend, M: Module<B>>(module: &M, root: &str) -> Vec<ParamInfo> {
    collect(module, root, false)
}

/// The parameters of `module` that take gradients, in the module's order. Initialises lazy ones.
pub fn trainable_parameters<B: Backend, M: Module<B>>(module: &M, root: &str) -> Vec<ParamInfo> {
    collect(module, root, true)
}

fn collect<B: Backend, M: Module<B>>(module: &M, root: &str, trainable: bool) -> Vec<ParamInfo> {
    let mut collector = Collector { path: ParamPath::new(root), trainable, found: Vec::new() };
    module.visit(&mut collector);
    collector.found
}

struct Collector {
    path: ParamPath,
    trainable: bool,
    found: Vec<ParamInfo>,
}

impl<B: Backend> ModuleVisitor<B> for Collector {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.path.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if !self.trainable || param.val().is_require_grad() {
            let (path, shape) = (self.path.path(), param.lazy_shape().to_vec());
            self.found.push(ParamInfo { id: param.id, path, shape });
        }
    }
}
