//! The optimiser: AdamW with a learning rate per group and one clip of the global gradient norm.

mod adamw;
mod groups;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::{AutodiffModule, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::record::{PrecisionSettings, Record};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::{Tensor, TensorData};

pub use adamw::{AdamW, HostMoments};
pub(crate) use adamw::{Moments, Store, sum_of_squares, to_f32};
pub(crate) use groups::ids_by_path;
pub use groups::{Group, TrainableParam, trainable_params};

/// Learning rates of the groups, relative to the base rate the scheduler gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupRates {
    /// Projector's rate over the base rate.
    pub projector: f64,
    /// Isolator's rate over the base rate.
    pub isolator: f64,
}

impl GroupRates {
    fn of(&self, group: Group) -> f64 {
        match group {
            Group::Projector => self.projector,
            Group::Isolator => self.isolator,
            Group::LanguageModel | Group::Other => 1.0,
        }
    }
}

/// The mutable state of the optimiser, shared with the strategy, which writes it into checkpoints.
#[derive(Debug)]
pub(crate) struct OptimState<B: Backend> {
    pub(crate) moments: HashMap<ParamId, Moments<B>>,
    /// Multiplies the accumulated gradient before anything else: 1 / supervised tokens of the
    /// window.
    pub(crate) grad_scale: f64,
    /// The global norm before clipping of the last step.
    pub(crate) grad_norm: Option<GradNorm<B>>,
}

/// A norm where it was computed.
#[derive(Clone, Debug)]
pub(crate) enum GradNorm<B: Backend> {
    Host(f64),
    Device(Tensor<B, 1>),
}

/// AdamW for one module. Clones share their state: Burn's Learner owns one, the strategy
/// checkpoints the other.
#[derive(Clone, Debug)]
pub struct GroupedAdamW<B: AutodiffBackend> {
    adamw: AdamW,
    rates: GroupRates,
    groups: Arc<HashMap<ParamId, Group>>,
    max_grad_norm: f64,
    on_host: bool,
    state: Arc<Mutex<OptimState<B::InnerBackend>>>,
}

impl<B: AutodiffBackend> GroupedAdamW<B> {
    /// An optimiser for `params`. `max_grad_norm` 0 switches clipping off.
    pub fn new(
        adamw: AdamW,
        rates: GroupRates,
        max_grad_norm: f64,
        params: &[TrainableParam],
        device: &B::Device,
    ) -> Self {
        let groups = params.iter().map(|param| (param.id, param.group)).collect();
        let state = OptimState { moments: HashMap::new(), grad_scale: 1.0, grad_norm: None };
        Self {
            adamw,
            rates,
            groups: Arc::new(groups),
            max_grad_norm,
            on_host: computes_on_host::<B>(device),
            state: Arc::new(Mutex::new(state)),
        }
    }

    /// The shared state; a poisoned lock is taken over, its content is plain data.
    pub(crate) fn state(&self) -> MutexGuard<'_, OptimState<B::InnerBackend>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether moments live in host memory.
    pub(crate) fn on_host(&self) -> bool {
        self.on_host
    }

    /// Uses the tensor implementation even where host memory is available (the tests compare the
    /// two).
    #[cfg(test)]
    pub(crate) fn force_device(mut self) -> Self {
        self.on_host = false;
        self
    }
}

/// Whether tensors of the backend live in host memory, so that one fused pass beats a dozen tensor
/// operations.
///
/// Asked by the backend's name: the name is the only thing that tells it without depending on every
/// backend.
pub(crate) fn computes_on_host<B: Backend>(device: &B::Device) -> bool {
    let name = B::name(device);
    name.contains("ndarray") || name.contains("flex")
}

/// A gradient, taken out of the container and flattened.
enum Grad<B: Backend> {
    Host(Vec<f32>),
    Device(Tensor<B, 1>),
}

struct GradCollector<'a, B: AutodiffBackend> {
    on_host: bool,
    grads: &'a mut GradientsParams,
    found: Vec<(ParamId, Grad<B::InnerBackend>)>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for GradCollector<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) {
            let grad = if self.on_host {
                Grad::Host(to_f32(grad))
            } else {
                let length = grad.shape().num_elements();
                Grad::Device(grad.reshape([length]))
            };
            self.found.push((param.id, grad));
        }
    }
}

struct Updater<'a, B: AutodiffBackend> {
    optim: &'a GroupedAdamW<B>,
    state: &'a mut OptimState<B::InnerBackend>,
    grads: HashMap<ParamId, Grad<B::InnerBackend>>,
    lr: f64,
    /// Host gradients are multiplied by this; device gradients are multiplied already.
    scale: f64,
}

impl<B: AutodiffBackend> ModuleMapper<B> for Updater<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(grad) = self.grads.remove(&param.id) else { return param };
        let (id, tensor, mapper) = param.consume();
        let group = self.optim.groups.get(&id).copied().unwrap_or(Group::Other);
        let lr = self.lr * self.optim.rates.of(group);
        let (requires_grad, shape) = (tensor.is_require_grad(), tensor.shape());
        let tensor = tensor.inner();
        let (device, dtype) = (tensor.device(), tensor.dtype());
        let length = shape.num_elements();
        let on_host = self.optim.on_host;
        let moments = self
            .state
            .moments
            .entry(id)
            .or_insert_with(|| Moments::zeros(length, on_host, &device));
        moments.updates += 1;
        let updates = moments.updates;
        let updated = match (grad, &mut moments.store) {
            (Grad::Host(grad), Store::Host { m, v }) => {
                let mut values = to_f32(tensor);
                self.optim.adamw.update_host(lr, self.scale, &mut values, &grad, m, v, updates);
                Tensor::from_data(TensorData::new(values, shape), (&device, dtype))
            }
            (Grad::Device(grad), Store::Device { m, v }) => {
                let flat = tensor.reshape([length]);
                let (flat, new_m, new_v) =
                    self.optim.adamw.update_device(lr, flat, grad, m.clone(), v.clone(), updates);
                *m = new_m;
                *v = new_v;
                flat.reshape(shape)
            }
            // `on_host` is fixed for the life of the optimiser, so gradient and moments always
            // agree.
            (_, _) => tensor,
        };
        let mut tensor = Tensor::from_inner(updated);
        if requires_grad {
            tensor = tensor.require_grad();
        }
        Param::from_mapped_value(id, tensor, mapper)
    }
}

impl<M: AutodiffModule<B>, B: AutodiffBackend> Optimizer<M, B> for GroupedAdamW<B> {
    type Record = AdamRecord;

    fn step(&mut self, lr: f64, module: M, mut grads: GradientsParams) -> M {
        let mut collector =
            GradCollector::<B> { on_host: self.on_host, grads: &mut grads, found: Vec::new() };
        module.visit(&mut collector);
        let mut found = collector.found;
        let this = self.clone();
        let mut state = this.state();
        let mut scale = state.grad_scale;
        state.grad_norm = if self.on_host {
            let norm = host_norm(&found) * scale;
            if self.max_grad_norm > 0.0 && norm > self.max_grad_norm {
                scale *= self.max_grad_norm / (norm + 1e-6);
            }
            Some(GradNorm::Host(norm))
        } else {
            clip_on_device(&mut found, scale, self.max_grad_norm).map(GradNorm::Device)
        };
        let grads = found.into_iter().collect();
        let mut updater = Updater { optim: self, state: &mut state, grads, lr, scale };
        module.map(&mut updater)
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        let mut merged = GradientsParams::new();
        let mut merger = Merger { from: grads, into: &mut merged };
        module.visit::<Merger<'_>>(&mut merger);
        Optimizer::<M, B>::step(self, lr, module, merged)
    }

    fn to_record(&self) -> Self::Record {
        let state = self.state();
        AdamRecord(state.moments.iter().map(|(id, m)| (id.val(), m.to_host())).collect())
    }

    fn load_record(self, record: Self::Record) -> Self {
        let device = Default::default();
        let moments = record
            .0
            .into_iter()
            .map(|(id, host)| (ParamId::from(id), Moments::from_host(host, self.on_host, &device)))
            .collect();
        self.state().moments = moments;
        self
    }
}

fn host_norm<B: Backend>(grads: &[(ParamId, Grad<B>)]) -> f64 {
    let squares = grads.iter().map(|(_, grad)| match grad {
        Grad::Host(values) => sum_of_squares(values),
        Grad::Device(_) => 0.0,
    });
    squares.sum::<f64>().sqrt()
}

/// Scales and clips gradients where they are; returns the norm before clipping.
fn clip_on_device<B: Backend>(
    grads: &mut [(ParamId, Grad<B>)],
    scale: f64,
    max_grad_norm: f64,
) -> Option<Tensor<B, 1>> {
    let squares: Vec<Tensor<B, 1>> = grads
        .iter()
        .filter_map(|(_, grad)| match grad {
            Grad::Device(grad) => Some((grad.clone() * grad.clone()).sum()),
            Grad::Host(_) => None,
        })
        .collect();
    if squares.is_empty() {
        return None;
    }
    let norm = Tensor::cat(squares, 0).sum().sqrt().mul_scalar(scale);
    let factor = if max_grad_norm > 0.0 {
        let clip = norm.clone().add_scalar(1e-6).recip().mul_scalar(max_grad_norm).clamp_max(1.0);
        clip.mul_scalar(scale)
    } else {
        norm.ones_like().mul_scalar(scale)
    };
    for (_, grad) in grads.iter_mut() {
        if let Grad::Device(values) = grad {
            *values = values.clone() * factor.clone();
        }
    }
    Some(norm)
}

struct Merger<'a> {
    from: MultiGradientsParams,
    into: &'a mut GradientsParams,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for Merger<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some((grad, _device)) = self.from.remove::<B::InnerBackend, D>(param.id) {
            self.into.register(param.id, grad);
        }
    }
}

/// The optimiser's state by parameter id, on the host.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct AdamRecord(BTreeMap<u64, HostMoments>);

impl<B: Backend> Record<B> for AdamRecord {
    type Item<S: PrecisionSettings> = AdamRecord;

    fn into_item<S: PrecisionSettings>(self) -> Self::Item<S> {
        self
    }

    fn from_item<S: PrecisionSettings>(item: Self::Item<S>, _device: &B::Device) -> Self {
        item
    }
}
