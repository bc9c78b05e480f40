//! The optimiser: AdamW with a learning rate per group and one clip of the global gradient norm. On the host it works on
//! slices in place; elsewhere all parameters go to the backend in one call.

mod adamw;
mod rates;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::record::{PrecisionSettings, Record};
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use dualspeed_model::ParamInfo;
use dualspeed_ops::{AdamWTensor, AutodiffBackend, Backend, to_f32};

pub use adamw::{AdamW, HostMoments};
pub(crate) use adamw::{Moments, Store, sum_of_squares};
pub use rates::GroupRates;

/// The moments of the optimiser, shared with the strategy, which writes them into checkpoints.
#[derive(Debug)]
pub(crate) struct OptimState<B: Backend> {
    pub(crate) moments: HashMap<ParamId, Moments<B>>,
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
    /// Each parameter's learning rate over the base rate.
    multipliers: Arc<HashMap<ParamId, f64>>,
    max_grad_norm: f64,
    on_host: bool,
    state: Arc<Mutex<OptimState<B::InnerBackend>>>,
}

impl<B: AutodiffBackend> GroupedAdamW<B> {
    /// An optimiser for `params`. `max_grad_norm` 0 switches clipping off.
    pub fn new(adamw: AdamW, rates: GroupRates, max_grad_norm: f64, params: &[ParamInfo]) -> Self {
        let state = OptimState { moments: HashMap::new() };
        Self {
            adamw,
            multipliers: Arc::new(rates.multipliers(params)),
            max_grad_norm,
            on_host: B::computes_on_host(),
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

/// Takes the gradients out of the container, to the host, in the module's order.
struct GradCollector<'a> {
    grads: &'a mut GradientsParams,
    found: Vec<(ParamId, Vec<f32>)>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for GradCollector<'_> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        if let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) {
            self.found.push((param.id, to_f32(grad)));
        }
    }
}

/// Updates parameters from host slices.
struct HostUpdater<'a, B: AutodiffBackend> {
    optim: &'a GroupedAdamW<B>,
    state: &'a mut OptimState<B::InnerBackend>,
    grads: HashMap<ParamId, Vec<f32>>,
    lr: f64,
    scale: f64,
}

impl<B: AutodiffBackend> ModuleMapper<B> for HostUpdater<'_, B> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(grad) = self.grads.remove(&param.id) else { return param };
        let id = param.id;
        let lr = self.optim.rate(self.lr, id);
        replace(param, |tensor| {
            let (device, dtype, shape) = (tensor.device(), tensor.dtype(), tensor.shape());
            let zeros = || Moments::zeros(shape.num_elements(), true, &device);
            let moments = self.state.moments.entry(id).or_insert_with(zeros);
            moments.updates += 1;
            let Store::Host { m, v } = &mut moments.store else { return tensor };
            let mut values = to_f32(tensor);
            let updates = moments.updates;
            self.optim.adamw.update_host(lr, self.scale, &mut values, &grad, m, v, updates);
            Tensor::from_data(TensorData::new(values, shape), (&device, dtype))
        })
    }
}

/// Gathers what the backend's update takes: parameters, gradients, moments, flattened.
struct DeviceCollector<'a, B: AutodiffBackend> {
    optim: &'a GroupedAdamW<B>,
    state: &'a mut OptimState<B::InnerBackend>,
    grads: &'a mut GradientsParams,
    lr: f64,
    ids: Vec<ParamId>,
    tensors: Vec<AdamWTensor<B::InnerBackend>>,
}

impl<B: AutodiffBackend> ModuleVisitor<B> for DeviceCollector<'_, B> {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let Some(grad) = self.grads.remove::<B::InnerBackend, D>(param.id) else { return };
        let value = param.val().inner();
        let length = value.shape().num_elements();
        // Moved out, so that the backend may write into them.
        let moments = self.state.moments.remove(&param.id);
        let moments = moments.unwrap_or_else(|| Moments::zeros(length, false, &value.device()));
        let Store::Device { m, v } = moments.store else { return };
        self.ids.push(param.id);
        self.tensors.push(AdamWTensor {
            param: primitive(value.reshape([length])),
            grad: primitive(grad.reshape([length])),
            m: primitive(m),
            v: primitive(v),
            lr: self.optim.rate(self.lr, param.id),
            updates: moments.updates + 1,
        });
    }
}

/// Puts updated values in their places.
struct Setter<B: Backend>(HashMap<ParamId, Tensor<B, 1>>);

impl<B: AutodiffBackend> ModuleMapper<B> for Setter<B::InnerBackend> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
        let Some(value) = self.0.remove(&param.id) else { return param };
        replace(param, |old| value.reshape(old.shape()))
    }
}

/// The same parameter with another value.
fn replace<B: AutodiffBackend, const D: usize>(
    param: Param<Tensor<B, D>>,
    update: impl FnOnce(Tensor<B::InnerBackend, D>) -> Tensor<B::InnerBackend, D>,
) -> Param<Tensor<B, D>> {
    let (id, tensor, mapper) = param.consume();
    let requires_grad = tensor.is_require_grad();
    let mut tensor = Tensor::from_inner(update(tensor.inner()));
    if requires_grad {
        tensor = tensor.require_grad();
    }
    Param::from_mapped_value(id, tensor, mapper)
}

fn primitive<B: Backend>(tensor: Tensor<B, 1>) -> B::FloatTensorPrimitive {
    tensor.into_primitive().tensor()
}

fn wrap<B: Backend>(primitive: B::FloatTensorPrimitive) -> Tensor<B, 1> {
    Tensor::from_primitive(TensorPrimitive::Float(primitive))
}

impl<B: AutodiffBackend> GroupedAdamW<B> {
    /// The learning rate of a parameter.
    fn rate(&self, base: f64, id: ParamId) -> f64 {
        base * self.multipliers.get(&id).copied().unwrap_or(1.0)
    }

    /// One update by the gradient divided by `tokens`, the supervised tokens of the whole step; returns the global norm of that
    /// mean gradient before clipping.
    pub(crate) fn update<M: AutodiffModule<B>>(
        &self,
        lr: f64,
        module: M,
        mut grads: GradientsParams,
        tokens: usize,
    ) -> (M, GradNorm<B::InnerBackend>) {
        let scale = 1.0 / tokens.max(1) as f64;
        match self.on_host {
            true => self.step_on_host(lr, scale, module, &mut grads),
            false => self.step_on_device(lr, scale, module, &mut grads),
        }
    }

    fn step_on_host<M: AutodiffModule<B>>(
        &self,
        lr: f64,
        mut scale: f64,
        module: M,
        grads: &mut GradientsParams,
    ) -> (M, GradNorm<B::InnerBackend>) {
        let mut collector = GradCollector { grads, found: Vec::new() };
        Module::<B>::visit(&module, &mut collector);
        let grads = collector.found;
        let mut state = self.state();
        let squares = grads.iter().map(|(_, grad)| sum_of_squares(grad));
        let norm = squares.sum::<f64>().sqrt() * scale;
        if self.max_grad_norm > 0.0 && norm > self.max_grad_norm {
            scale *= self.max_grad_norm / (norm + 1e-6);
        }
        let grads = grads.into_iter().collect();
        let module =
            module.map(&mut HostUpdater { optim: self, state: &mut state, grads, lr, scale });
        (module, GradNorm::Host(norm))
    }

    fn step_on_device<M: AutodiffModule<B>>(
        &self,
        lr: f64,
        scale: f64,
        module: M,
        grads: &mut GradientsParams,
    ) -> (M, GradNorm<B::InnerBackend>) {
        let mut state = self.state();
        let mut collector = DeviceCollector::<B> {
            optim: self,
            state: &mut state,
            grads,
            lr,
            ids: Vec::new(),
            tensors: Vec::new(),
        };
        Module::<B>::visit(&module, &mut collector);
        let DeviceCollector { ids, tensors, .. } = collector;
        let updates: Vec<u64> = tensors.iter().map(|tensor| tensor.updates).collect();
        let config = self.adamw.config(scale, self.max_grad_norm);
        let out = <B::InnerBackend as Backend>::fused_adamw(tensors, config);
        let norm = GradNorm::Device(wrap(out.norm));
        let mut values = HashMap::with_capacity(ids.len());
        for ((id, updates), [param, m, v]) in ids.into_iter().zip(updates).zip(out.updated) {
            values.insert(id, wrap(param));
            let store = Store::Device { m: wrap(m), v: wrap(v) };
            state.moments.insert(id, Moments { updates, store });
        }
        (module.map(&mut Setter::<B::InnerBackend>(values)), norm)
    }
}

impl<M: AutodiffModule<B>, B: AutodiffBackend> Optimizer<M, B> for GroupedAdamW<B> {
    type Record = AdamRecord;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        self.update(lr, module, grads, 1).0
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
