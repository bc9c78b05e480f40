//! Frozen weights: no gradient, no optimiser state, no room in records.
//!
//! Visitors and mappers still see the weights (importers, counters); an optimiser's mapper leaves
//! them alone because they have no gradient.

use std::ops::Deref;

use burn::module::{
    AutodiffModule, Content, Devices, HasAutodiffModule, Module, ModuleDisplay,
    ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param,
};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

/// Frozen or trained by a run-time flag: what stage 1 freezes, stage 2 may train.
///
/// A frozen module's record is `None`, so a stage-1 checkpoint holds no language model; loading
/// `None` keeps the weights that are there.
#[derive(Clone, Debug)]
pub struct Freezable<M> {
    module: M,
    frozen: bool,
}

impl<M> Freezable<M> {
    /// Wraps a module that is trained until it is frozen.
    pub fn new(module: M) -> Self {
        Self { module, frozen: false }
    }

    /// Wraps a module that is frozen until it is trained: a pretrained vision tower.
    pub fn frozen<B: Backend>(module: M) -> Self
    where
        M: Module<B>,
    {
        Self::new(module).set_frozen::<B>(true)
    }

    /// Whether the module is frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// The module itself.
    pub fn into_inner(self) -> M {
        self.module
    }

    /// Sets the flag and every parameter's `require_grad` to match.
    pub fn set_frozen<B: Backend>(self, frozen: bool) -> Self
    where
        M: Module<B>,
    {
        Self { module: set_require_grad(self.module, !frozen), frozen }
    }
}

/// Sets `require_grad` of every float parameter without touching ids.
pub(crate) fn set_require_grad<B: Backend, M: Module<B>>(module: M, require_grad: bool) -> M {
    struct Setter(bool);
    impl<B: Backend> ModuleMapper<B> for Setter {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<B, D>>) -> Param<Tensor<B, D>> {
            // On a lazy parameter this only sets the flag.
            param.set_require_grad(self.0)
        }
    }
    module.map(&mut Setter(require_grad))
}

impl<M> Deref for Freezable<M> {
    type Target = M;
    fn deref(&self) -> &M {
        &self.module
    }
}

impl<B: Backend, M: Module<B>> Module<B> for Freezable<M> {
    type Record = Option<M::Record>;

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        self.module.collect_devices(devices)
    }
    fn fork(self, device: &B::Device) -> Self {
        Self { module: self.module.fork(device), ..self }
    }
    fn to_device(self, device: &B::Device) -> Self {
        Self { module: self.module.to_device(device), ..self }
    }
    fn visit<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        self.module.visit(visitor);
    }
    fn map<Map: ModuleMapper<B>>(self, mapper: &mut Map) -> Self {
        Self { module: self.module.map(mapper), ..self }
    }
    fn load_record(self, record: Self::Record) -> Self {
        match record {
            Some(record) => Self { module: self.module.load_record(record), ..self },
            None => self,
        }
    }
    fn into_record(self) -> Self::Record {
        (!self.frozen).then(|| self.module.into_record())
    }
}

impl<B: AutodiffBackend, M: AutodiffModule<B>> AutodiffModule<B> for Freezable<M> {
    type InnerModule = Freezable<M::InnerModule>;

    fn valid(&self) -> Self::InnerModule {
        Freezable { module: self.module.valid(), frozen: self.frozen }
    }
    fn from_inner(module: Self::InnerModule) -> Self {
        let frozen = module.frozen;
        Self { module: set_require_grad(M::from_inner(module.module), !frozen), frozen }
    }
}

impl<B: AutodiffBackend, M: HasAutodiffModule<B>> HasAutodiffModule<B> for Freezable<M>
where
    M: Module<B::InnerBackend>,
{
    type TrainModule = Freezable<M::TrainModule>;
}

impl<M: ModuleDisplay> ModuleDisplayDefault for Freezable<M> {
    fn content(&self, content: Content) -> Option<Content> {
        let name = if self.frozen { "Frozen" } else { "Trained" };
        content.set_top_level_type(name).add_single(&self.module).optional()
    }
}

impl<M: ModuleDisplay> ModuleDisplay for Freezable<M> {}
