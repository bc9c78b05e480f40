//! The optimiser: AdamW with a learning rate per group and one clip of the global gradient norm. On the host it works on
//! slices in place; elsewhere all parameters go to the backend in one call.

mod adamw;
mod rates;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use burn::module::{AutodiffModule, Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::{GradientsParams, MultiGradientsParams, Optimizer};
use burn::record::{PrecisionSettings, Record};
use burn::tensor::{Tensor, TensorData, TensorPrimitive};
use dualspeed_model::ParamInfo;
use dualspeed_ops::{AdamWGuard, AdamWTensor, AutodiffBackend, Backend, to_f32};

pub use adamw::{AdamW, HostMoments};
pub(crate) use adamw::{Moments, Store, all_finite, sum_of_squares};
pub use rates::GroupRates;

/// The moments of the optimiser, shared with the strategy, which writes them into checkpoints.
#[derive(Debug)]
pub(crate) struct OptimState<B: Backend> {
    /// Those of an undecided update count it as applied.
    pub(crate) moments: HashMap<ParamId, Moments<B>>,
    /// Updates that the device decided on without telling the host yet, oldest first.
    undecided: VecDeque<Undecided<B>>,
}

/// An update of which the host does not know whether it was applied.
#[derive(Debug)]
struct Undecided<B: Backend> {
    /// `[1]`: 1 or 0.
    applied: Tensor<B, 1>,
    params: HashSet<ParamId>,
}

/// What became of an update, where it was computed. One that is not applied changes nothing: the gradients, a loss or a new
/// value was not finite.
#[derive(Clone, Debug)]
pub(crate) enum Updated<B: Backend> {
    Host { grad_norm: f64, applied: bool },
    Device { grad_norm: Tensor<B, 1>, applied: Tensor<B, 1> },
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
        let state = OptimState { moments: HashMap::new(), undecided: VecDeque::new() };
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

    /// Takes in whether the oldest undecided update was applied.
    pub(crate) fn settle(&self, applied: bool) {
        self.state().settle(applied);
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

impl<B: Backend> OptimState<B> {
    fn settle(&mut self, applied: bool) {
        let Some(update) = self.undecided.pop_front() else { return };
        if applied {
            return;
        }
        for (_, moments) in self.moments.iter_mut().filter(|(id, _)| update.params.contains(id)) {
            moments.updates = moments.updates.saturating_sub(1);
        }
    }

    /// Waits until at most `left` updates are undecided.
    fn settle_but(&mut self, left: usize) {
        while self.undecided.len() > left {
            let applied = self.undecided.front().map(|update| to_f32(update.applied.clone()));
            self.settle(applied.is_some_and(|applied| applied != [0.0]));
        }
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
    /// Whether new values are looked at, and whether all of them were finite.
    probed: bool,
    finite: bool,
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
            if self.probed {
                self.finite &= [&values, &*m, &*v].into_iter().all(|values| all_finite(values));
            }
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
    /// Parameters of the update before, while it is undecided.
    before: HashSet<ParamId>,
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
            undecided: self.before.contains(&param.id),
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

    /// One update by the gradient divided by `tokens`, the supervised tokens of the whole step, unless the global norm of that
    /// mean gradient before clipping, one of `losses` `[n]` or a new value is not finite: then parameters and moments stay as
    /// they are, bit for bit. A device decides that by itself; [`settle`](Self::settle) is told when it has answered.
    pub(crate) fn update<M: AutodiffModule<B>>(
        &self,
        lr: f64,
        module: M,
        mut grads: GradientsParams,
        tokens: usize,
        losses: Option<Tensor<B::InnerBackend, 1>>,
    ) -> (M, Updated<B::InnerBackend>) {
        let scale = 1.0 / tokens.max(1) as f64;
        match self.on_host {
            true => self.step_on_host(lr, scale, module, &mut grads, losses),
            false => self.step_on_device(lr, scale, module, &mut grads, losses),
        }
    }

    fn step_on_host<M: AutodiffModule<B>>(
        &self,
        lr: f64,
        mut scale: f64,
        module: M,
        grads: &mut GradientsParams,
        losses: Option<Tensor<B::InnerBackend, 1>>,
    ) -> (M, Updated<B::InnerBackend>) {
        let mut collector = GradCollector { grads, found: Vec::new() };
        Module::<B>::visit(&module, &mut collector);
        let grads = collector.found;
        let mut state = self.state();
        let squares = grads.iter().map(|(_, grad)| sum_of_squares(grad));
        let grad_norm = squares.sum::<f64>().sqrt() * scale;
        let finite = grad_norm.is_finite() && losses.is_none_or(|x| all_finite(&to_f32(x)));
        if !finite {
            return (module, Updated::Host { grad_norm, applied: false });
        }
        if self.max_grad_norm > 0.0 && grad_norm > self.max_grad_norm {
            scale *= self.max_grad_norm / (grad_norm + 1e-6);
        }
        let config = self.adamw.config(scale.min(1.0), 0.0);
        let rates = grads.iter().map(|(id, _)| self.rate(lr, *id));
        // Squares of this size do not fit an f32.
        let probed = grad_norm > 1e18 || !rates.fold(true, |all, lr| all & config.keeps_finite(lr));
        let before = probed.then(|| (module.clone(), state.moments.clone()));
        let grads = grads.into_iter().collect();
        let (optim, finite) = (self, true);
        let mut updater =
            HostUpdater { optim, state: &mut state, grads, lr, scale, probed, finite };
        let module = module.map(&mut updater);
        match (updater.finite, before) {
            (false, Some((module, moments))) => {
                state.moments = moments;
                (module, Updated::Host { grad_norm, applied: false })
            }
            _ => (module, Updated::Host { grad_norm, applied: true }),
        }
    }

    fn step_on_device<M: AutodiffModule<B>>(
        &self,
        lr: f64,
        scale: f64,
        module: M,
        grads: &mut GradientsParams,
        losses: Option<Tensor<B::InnerBackend, 1>>,
    ) -> (M, Updated<B::InnerBackend>) {
        let mut state = self.state();
        // An update can make up for the one before it, not for more; training loops are one step ahead at most.
        state.settle_but(1);
        let before = state.undecided.back();
        let (applied_before, before) =
            before.map(|update| (primitive(update.applied.clone()), update.params.clone())).unzip();
        let mut collector = DeviceCollector::<B> {
            optim: self,
            state: &mut state,
            grads,
            lr,
            before: before.unwrap_or_default(),
            ids: Vec::new(),
            tensors: Vec::new(),
        };
        Module::<B>::visit(&module, &mut collector);
        let DeviceCollector { ids, tensors, .. } = collector;
        let updates: Vec<u64> = tensors.iter().map(|tensor| tensor.updates).collect();
        let config = self.adamw.config(scale, self.max_grad_norm);
        let guard = AdamWGuard { losses: losses.map(primitive), before: applied_before };
        let out = <B::InnerBackend as Backend>::fused_adamw(tensors, guard, config);
        let (grad_norm, applied) = (wrap(out.norm), wrap::<B::InnerBackend>(out.applied));
        let params = ids.iter().copied().collect();
        state.undecided.push_back(Undecided { applied: applied.clone(), params });
        let mut values = HashMap::with_capacity(ids.len());
        for ((id, updates), [param, m, v]) in ids.into_iter().zip(updates).zip(out.updated) {
            values.insert(id, wrap(param));
            let store = Store::Device { m: wrap(m), v: wrap(v) };
            state.moments.insert(id, Moments { updates, store });
        }
        let module = module.map(&mut Setter::<B::InnerBackend>(values));
        (module, Updated::Device { grad_norm, applied })
    }
}

impl<M: AutodiffModule<B>, B: AutodiffBackend> Optimizer<M, B> for GroupedAdamW<B> {
    type Record = AdamRecord;

    fn step(&mut self, lr: f64, module: M, grads: GradientsParams) -> M {
        self.update(lr, module, grads, 1, None).0
    }

    fn step_multi(&mut self, lr: f64, module: M, grads: MultiGradientsParams) -> M {
        let mut merged = GradientsParams::new();
        let mut merger = Merger { from: grads, into: &mut merged };
        module.visit::<Merger<'_>>(&mut merger);
        Optimizer::<M, B>::step(self, lr, module, merged)
    }

    fn to_record(&self) -> Self::Record {
        let mut state = self.state();
        state.settle_but(0);
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
