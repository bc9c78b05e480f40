//! Parameter groups: which trainable parameter belongs to the projector, the isolator, or the
//! language model.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, backend::Backend};
use serde::{Deserialize, Serialize};

/// A group of trainable parameters with a learning rate of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Group {
    /// `mm_projector`.
    Projector,
    /// `mode_isolator`.
    Isolator,
    /// `language_model`, and `lora` beside it.
    LanguageModel,
    /// The vision tower and anything else a user adds; trained with the base rate if it takes
    /// gradients.
    Other,
}

impl Group {
    /// The group of a parameter by its dotted path.
    pub fn of(path: &str) -> Self {
        let has = |name: &str| path.split('.').any(|part| part == name);
        if has("mm_projector") {
            Group::Projector
        } else if has("mode_isolator") {
            Group::Isolator
        } else if has("language_model") || has("lora") {
            Group::LanguageModel
        } else {
            Group::Other
        }
    }
}

/// One trainable parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrainableParam {
    /// Burn's id, the key of gradients.
    pub id: ParamId,
    /// The dotted path, the key of checkpoints.
    pub path: String,
    /// The shape.
    pub shape: Vec<usize>,
    /// The group.
    pub group: Group,
}

/// The parameters of `module` that take gradients, in the module's order.
pub fn trainable_params<B: Backend, M: Module<B>>(module: &M) -> Vec<TrainableParam> {
    let mut visitor = Collector { path: Vec::new(), found: Vec::new() };
    module.visit(&mut visitor);
    visitor.found
}

/// The ids of the trainable parameters by path.
pub(crate) fn ids_by_path(params: &[TrainableParam]) -> HashMap<&str, &TrainableParam> {
    params.iter().map(|param| (param.path.as_str(), param)).collect()
}

struct Collector {
    path: Vec<String>,
    found: Vec<TrainableParam>,
}

impl<B: Backend> ModuleVisitor<B> for Collector {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let value = param.val();
        if value.is_require_grad() {
            let path = self.path.join(".");
            let group = Group::of(&path);
            self.found.push(TrainableParam {
                id: param.id,
                group,
                path,
                shape: value.dims().to_vec(),
            });
        }
    }

    fn enter_module(&mut self, name: &str, _container: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.path.pop();
    }
}
