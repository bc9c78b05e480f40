//! Which parameters a stage trains, and how an optimiser finds its groups.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{DType, FloatDType, Tensor};
use dualspeed_ops::Backend;
use serde::{Deserialize, Serialize};

use crate::error::ModelError;
use crate::llava::Llava;
use crate::walk::Walk;

/// What a stage trains; the vision tower never.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Trainable {
    /// The projector.
    pub projector: bool,
    /// The mode isolator, if the model has one.
    pub isolator: bool,
    /// The decoder's own weights.
    pub language_model: bool,
    /// The adapters.
    pub lora: bool,
}

impl Default for Trainable {
    fn default() -> Self {
        Self::full()
    }
}

impl Trainable {
    /// Stage 1: projector and isolator.
    pub const fn pretrain() -> Self {
        Self { projector: true, isolator: true, language_model: false, lora: false }
    }

    /// Stage 2 with adapters.
    pub const fn finetune_lora() -> Self {
        Self { projector: true, isolator: true, language_model: false, lora: true }
    }

    /// Everything but the vision tower and adapters: stage 2 in full, or one stage from scratch.
    pub const fn full() -> Self {
        Self { projector: true, isolator: true, language_model: true, lora: false }
    }

    /// Nothing.
    pub const fn nothing() -> Self {
        Self { projector: false, isolator: false, language_model: false, lora: false }
    }
}

/// The part of the model a parameter belongs to; learning rates are set per group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ParamGroup {
    /// The frozen vision tower.
    VisionTower,
    /// The projector.
    Projector,
    /// The mode isolator.
    Isolator,
    /// The decoder's own weights.
    LanguageModel,
    /// The adapters.
    Lora,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq)]
pub struct ParamInfo {
    /// Its id, a hash of its path at init.
    pub id: ParamId,
    /// Its group.
    pub group: ParamGroup,
    /// Its path, e.g. `language_model.layers.0.self_attn.q_proj.weight`.
    pub path: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether the current stage trains it.
    pub trainable: bool,
}

impl ParamInfo {
    /// Number of elements.
    pub fn num_elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl<B: Backend> Llava<B> {
    /// The same model, with exactly these parts taking gradients.
    ///
    /// # Errors
    /// [`ModelError::NoLora`] if adapters are to be trained and the model has none.
    pub fn with_trainable(self, trainable: Trainable) -> Result<Self, ModelError> {
        if trainable.lora && self.lora.is_none() {
            return Err(ModelError::NoLora);
        }
        Ok(Self {
            mm_projector: self.mm_projector.set_frozen::<B>(!trainable.projector),
            // Learned with the projector, as in LLaVA-NeXT.
            image_newline: self.image_newline.set_frozen::<B>(!trainable.projector),
            mode_isolator: self.mode_isolator.set_frozen::<B>(!trainable.isolator),
            language_model: self.language_model.set_frozen::<B>(!trainable.language_model),
            lora: self.lora.set_frozen::<B>(!trainable.lora),
            ..self
        })
    }

    /// The same model with every frozen weight in `config.dtype`, and what is trained in f32.
    ///
    /// # Errors
    /// [`ModelError::Dtype`] if the backend has no such type on this device.
    pub fn store_frozen(self) -> Result<Self, ModelError> {
        let dtype = self.config.dtype.float();
        let device = self.language_model.embed_tokens.weight.lazy_device();
        if !B::supports_dtype(&device, dtype.into()) {
            let backend = B::name(&device);
            return Err(ModelError::Dtype { dtype: self.config.dtype, backend });
        }
        Ok(self.map(&mut StoreFrozen(dtype)))
    }

    /// What the current stage trains.
    pub fn trainable(&self) -> Trainable {
        Trainable {
            projector: !self.mm_projector.is_frozen(),
            isolator: !self.mode_isolator.is_frozen(),
            language_model: !self.language_model.is_frozen(),
            lora: !self.lora.is_frozen() && self.lora.is_some(),
        }
    }

    /// Every parameter with its group, in the module's order. Initialises no lazy parameter.
    pub fn param_groups(&self) -> Vec<ParamInfo> {
        let trainable = self.trainable();
        let mut infos = Vec::new();
        let mut collect = |group, trainable, root: &str, visit: &dyn Fn(&mut Paths)| {
            let mut paths = Paths { walk: Walk::new(root), found: Vec::new() };
            visit(&mut paths);
            infos.extend(paths.found.into_iter().map(|(id, path, shape)| ParamInfo {
                id,
                group,
                path,
                shape,
                trainable,
            }));
        };
        collect(ParamGroup::VisionTower, false, "vision_tower", &|paths| {
            visit::<B, _>(&self.vision_tower, paths);
        });
        collect(ParamGroup::Projector, trainable.projector, "mm_projector", &|paths| {
            visit::<B, _>(&self.mm_projector, paths);
        });
        collect(ParamGroup::Projector, trainable.projector, "image_newline", &|paths| {
            visit::<B, _>(&self.image_newline, paths);
        });
        collect(ParamGroup::Isolator, trainable.isolator, "mode_isolator", &|paths| {
            visit::<B, _>(&self.mode_isolator, paths);
        });
        collect(ParamGroup::LanguageModel, trainable.language_model, "language_model", &|paths| {
            visit::<B, _>(&self.language_model, paths);
        });
        collect(ParamGroup::Lora, trainable.lora, "lora", &|paths| {
            visit::<B, _>(&self.lora, paths);
        });
        infos
    }
}

struct StoreFrozen(FloatDType);

impl<B: Backend> ModuleMapper<B> for StoreFrozen {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let dtype = if param.is_require_grad() { FloatDType::F32 } else { self.0 };
        param.map(|tensor| cast(tensor, dtype))
    }
}

/// A cast that costs nothing where the type is right already.
pub(crate) fn cast<B: Backend, const D: usize>(
    tensor: Tensor<B, D>,
    dtype: FloatDType,
) -> Tensor<B, D> {
    if tensor.dtype() == DType::from(dtype) { tensor } else { tensor.cast(dtype) }
}

fn visit<B: Backend, M: Module<B>>(module: &M, paths: &mut Paths) {
    module.visit(paths);
}

/// Collects paths and shapes.
struct Paths {
    walk: Walk,
    found: Vec<(ParamId, String, Vec<usize>)>,
}

impl<B: Backend> ModuleVisitor<B> for Paths {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.walk.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.walk.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        self.found.push((param.id, self.walk.path(), param.lazy_shape().to_vec()));
    }
}
