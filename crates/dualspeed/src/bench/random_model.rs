//! Models with random weights made on the device.

use std::collections::HashSet;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{Distribution, FloatDType, Tensor};
use dualspeed_model::{ClipVit, Dtype, Init, Llava, ParamGroup, VitConfig};
use dualspeed_ops::{AutodiffBackend, Backend};
use dualspeed_train::TrainConfig;

/// A model for `config` whose matrices are normal with standard deviation 0.02, drawn on the device in their final type.
///
/// # Errors
/// If the configuration cannot be built.
pub fn random_model<B: AutodiffBackend>(
    config: &TrainConfig,
    device: &B::Device,
) -> anyhow::Result<Llava<B>> {
    B::seed(device, config.seed);
    let config = &config.effective();
    let model = config.model.init::<B>(device, config.seed)?;
    let trainable = config.trainable();
    let model = model.with_trainable(trainable)?;
    // Asking a parameter itself would draw its initial values, on the host.
    let is_trained = |path: &str| ParamGroup::of(path).is_some_and(|group| trainable.has(group));
    let trained = model.parameters().into_iter().filter(|param| is_trained(&param.path));
    let trained = trained.map(|param| param.id).collect();
    Ok(model.map(&mut RandomWeights { dtype: config.model.dtype, trained }))
}

/// A frozen vision tower whose matrices are normal with standard deviation 0.02, drawn on the device in type `dtype`.
pub fn random_tower<B: Backend>(
    config: &VitConfig,
    dtype: Dtype,
    device: &B::Device,
) -> ClipVit<B> {
    B::seed(device, 0);
    let tower: ClipVit<B> = config.init(&Init::new(0, device).frozen());
    tower.map(&mut RandomWeights { dtype, trained: HashSet::new() })
}

/// Replaces matrices by random ones: in f32 where they are `trained`, else in `dtype`.
struct RandomWeights {
    dtype: Dtype,
    trained: HashSet<ParamId>,
}

impl<B: Backend> ModuleMapper<B> for RandomWeights {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let (device, trained) = (param.lazy_device(), self.trained.contains(&param.id));
        // Norms and biases have the values they start with; they are small.
        if D == 1 {
            let dtype = if trained { FloatDType::F32 } else { self.dtype.float() };
            return param.map(|tensor| tensor.cast(dtype));
        }
        let normal = Distribution::Normal(0.0, 0.02);
        let drawn = Tensor::<B, D>::random(param.lazy_shape(), normal, &device);
        let drawn = match trained {
            true => drawn,
            false => drawn.cast(self.dtype.float()),
        };
        Param::initialized(param.id, drawn.set_require_grad(trained))
    }
}
