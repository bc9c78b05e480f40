//! Parameters by name: the weights of a part that another crate defines.
//!
//! A vision tower or projector from outside cannot be a field of our model's type, but its weights must be seen by importers,
//! checkpoints and optimisers. They live here, under the names their maker gives them.

use burn::module::{
    AutodiffModule, Content, Devices, HasAutodiffModule, Module, ModuleDisplay,
    ModuleDisplayDefault, ModuleMapper, ModuleVisitor, Param,
};
use burn::tensor::Tensor;
use burn::tensor::backend::{AutodiffBackend, Backend};

/// A parameter of any of the ranks that weights have.
#[derive(Clone, Debug)]
enum AnyParam<B: Backend> {
    Vector(Param<Tensor<B, 1>>),
    Matrix(Param<Tensor<B, 2>>),
    Kernel(Param<Tensor<B, 4>>),
}

/// Parameters by name, in the order in which they were added.
#[derive(Clone, Debug, Default)]
pub struct ParamMap<B: Backend> {
    entries: Vec<(String, AnyParam<B>)>,
}

impl<B: Backend> ParamMap<B> {
    /// No parameter: a part that has none to learn.
    pub fn new() -> Self {
        Self { entries: Vec::new() }
    }

    /// The same with a vector, e.g. a bias.
    pub fn with_vector(mut self, name: impl Into<String>, param: Param<Tensor<B, 1>>) -> Self {
        self.entries.push((name.into(), AnyParam::Vector(param)));
        self
    }

    /// The same with a matrix, in Burn's layout `[d_in, d_out]`.
    pub fn with_matrix(mut self, name: impl Into<String>, param: Param<Tensor<B, 2>>) -> Self {
        self.entries.push((name.into(), AnyParam::Matrix(param)));
        self
    }

    /// The same with a convolution's kernel, `[out, in, k, k]`.
    pub fn with_kernel(mut self, name: impl Into<String>, param: Param<Tensor<B, 4>>) -> Self {
        self.entries.push((name.into(), AnyParam::Kernel(param)));
        self
    }

    fn get(&self, name: &str) -> Option<&AnyParam<B>> {
        self.entries.iter().find_map(|(key, param)| (key == name).then_some(param))
    }

    /// The vector of that name.
    pub fn vector(&self, name: &str) -> Option<Tensor<B, 1>> {
        match self.get(name)? {
            AnyParam::Vector(param) => Some(param.val()),
            _ => None,
        }
    }

    /// The matrix of that name.
    pub fn matrix(&self, name: &str) -> Option<Tensor<B, 2>> {
        match self.get(name)? {
            AnyParam::Matrix(param) => Some(param.val()),
            _ => None,
        }
    }

    /// The kernel of that name.
    pub fn kernel(&self, name: &str) -> Option<Tensor<B, 4>> {
        match self.get(name)? {
            AnyParam::Kernel(param) => Some(param.val()),
            _ => None,
        }
    }

    fn map_entries<C: Backend>(
        self,
        mut f: impl FnMut(&str, AnyParam<B>) -> AnyParam<C>,
    ) -> ParamMap<C> {
        let entries = self.entries.into_iter().map(|(name, param)| {
            let param = f(&name, param);
            (name, param)
        });
        ParamMap { entries: entries.collect() }
    }
}

/// Applies a method of `Module` to whichever parameter it is.
macro_rules! each {
    ($param:expr, $p:ident => $body:expr) => {
        match $param {
            AnyParam::Vector($p) => AnyParam::Vector($body),
            AnyParam::Matrix($p) => AnyParam::Matrix($body),
            AnyParam::Kernel($p) => AnyParam::Kernel($body),
        }
    };
}

/// The container that visitors see; matrices in it are transposed in checkpoints as linear layers are.
const CONTAINER: &str = "Struct:Linear";

impl<B: Backend> Module<B> for ParamMap<B> {
    // Vectors, matrices and kernels, each in the order in which they were added: a record knows no names.
    type Record = (Vec<Param<Tensor<B, 1>>>, Vec<Param<Tensor<B, 2>>>, Vec<Param<Tensor<B, 4>>>);

    fn collect_devices(&self, devices: Devices<B>) -> Devices<B> {
        self.entries.iter().fold(devices, |devices, (_, param)| match param {
            AnyParam::Vector(p) => p.collect_devices(devices),
            AnyParam::Matrix(p) => p.collect_devices(devices),
            AnyParam::Kernel(p) => p.collect_devices(devices),
        })
    }
    fn fork(self, device: &B::Device) -> Self {
        self.map_entries(|_, param| each!(param, p => p.fork(device)))
    }
    fn to_device(self, device: &B::Device) -> Self {
        self.map_entries(|_, param| each!(param, p => p.to_device(device)))
    }
    fn visit<V: ModuleVisitor<B>>(&self, visitor: &mut V) {
        for (name, param) in &self.entries {
            visitor.enter_module(name, CONTAINER);
            match param {
                AnyParam::Vector(p) => p.visit(visitor),
                AnyParam::Matrix(p) => p.visit(visitor),
                AnyParam::Kernel(p) => p.visit(visitor),
            }
            visitor.exit_module(name, CONTAINER);
        }
    }
    fn map<M: ModuleMapper<B>>(self, mapper: &mut M) -> Self {
        self.map_entries(|name, param| {
            mapper.enter_module(name, CONTAINER);
            let param = each!(param, p => Module::map(p, mapper));
            mapper.exit_module(name, CONTAINER);
            param
        })
    }
    fn load_record(self, (vectors, matrices, kernels): Self::Record) -> Self {
        let (mut vectors, mut matrices, mut kernels) =
            (vectors.into_iter(), matrices.into_iter(), kernels.into_iter());
        fn load<B: Backend, const D: usize>(
            param: Param<Tensor<B, D>>,
            record: Option<Param<Tensor<B, D>>>,
        ) -> Param<Tensor<B, D>> {
            match record {
                Some(record) => param.load_record(record),
                None => param,
            }
        }
        self.map_entries(|_, param| match param {
            AnyParam::Vector(p) => AnyParam::Vector(load(p, vectors.next())),
            AnyParam::Matrix(p) => AnyParam::Matrix(load(p, matrices.next())),
            AnyParam::Kernel(p) => AnyParam::Kernel(load(p, kernels.next())),
        })
    }
    fn into_record(self) -> Self::Record {
        let (mut vectors, mut matrices, mut kernels) = (Vec::new(), Vec::new(), Vec::new());
        for (_, param) in self.entries {
            match param {
                AnyParam::Vector(p) => vectors.push(p.into_record()),
                AnyParam::Matrix(p) => matrices.push(p.into_record()),
                AnyParam::Kernel(p) => kernels.push(p.into_record()),
            }
        }
        (vectors, matrices, kernels)
    }
}

impl<B: AutodiffBackend> AutodiffModule<B> for ParamMap<B> {
    type InnerModule = ParamMap<B::InnerBackend>;

    fn valid(&self) -> Self::InnerModule {
        self.clone().map_entries(|_, param| each!(param, p => p.valid()))
    }
    fn from_inner(module: Self::InnerModule) -> Self {
        module.map_entries(|_, param| each!(param, p => AutodiffModule::from_inner(p)))
    }
}

impl<B: AutodiffBackend> HasAutodiffModule<B> for ParamMap<B::InnerBackend> {
    type TrainModule = ParamMap<B>;
}

impl<B: Backend> ModuleDisplayDefault for ParamMap<B> {
    fn content(&self, content: Content) -> Option<Content> {
        let content = content.set_top_level_type("ParamMap");
        let content = self.entries.iter().fold(content, |content, (name, param)| match param {
            AnyParam::Vector(p) => content.add(name, p),
            AnyParam::Matrix(p) => content.add(name, p),
            AnyParam::Kernel(p) => content.add(name, p),
        });
        content.optional()
    }
}

impl<B: Backend> ModuleDisplay for ParamMap<B> {}
