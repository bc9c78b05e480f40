//! The parameters of a module as named tensors in PyTorch's layout, read from the device one at a time.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};
use dualspeed_ops::Backend;
use safetensors::{Dtype, View};

use crate::formats::import::tensor::{FloatType, HostTensor, Values};
use crate::nn::params::ParamPath;

/// A tensor that is fetched when it is written.
#[derive(Clone)]
pub(super) struct Pending<'a> {
    shape: Vec<usize>,
    dtype: FloatType,
    fetch: Rc<dyn Fn() -> HostTensor + 'a>,
}

impl Pending<'_> {
    /// Bytes it will take.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.size()
    }

    /// What it will be written as.
    pub fn dtype(&self) -> FloatType {
        self.dtype
    }

    /// Fetches it.
    pub fn read(&self) -> HostTensor {
        (self.fetch)().cast(self.dtype)
    }
}

impl View for &Pending<'_> {
    fn dtype(&self) -> Dtype {
        match self.dtype {
            FloatType::F32 => Dtype::F32,
            FloatType::F16 => Dtype::F16,
            FloatType::Bf16 => Dtype::BF16,
        }
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Owned(match self.read().values {
            Values::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::F16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            Values::Bf16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        })
    }

    fn data_len(&self) -> usize {
        self.bytes()
    }
}

/// All parameters of a module by path below `root`; `dtype` is what they are written as, their own by default.
pub(super) fn collect<B: Backend, M: Module<B>>(
    module: &M,
    root: &str,
    dtype: Option<FloatType>,
) -> BTreeMap<String, Pending<'static>> {
    let mut collector = Collector { walk: ParamPath::new(root), dtype, found: BTreeMap::new() };
    module.visit(&mut collector);
    collector.found
}

struct Collector {
    walk: ParamPath,
    dtype: Option<FloatType>,
    found: BTreeMap<String, Pending<'static>>,
}

impl<B: Backend> ModuleVisitor<B> for Collector {
    fn enter_module(&mut self, name: &str, container: &str) {
        self.walk.enter(name, container);
    }

    fn exit_module(&mut self, _name: &str, _container: &str) {
        self.walk.exit();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
        let path = self.walk.path();
        let turned = self.walk.is_transposed(D);
        let mut shape = param.lazy_shape().to_vec();
        if turned {
            shape.reverse();
        }
        let tensor = param.val().detach();
        let own = match tensor.dtype() {
            DType::BF16 => FloatType::Bf16,
            DType::F16 => FloatType::F16,
            _ => FloatType::F32,
        };
        let fetch = move || {
            let host = fetch(tensor.clone(), own);
            if turned { host.transposed() } else { host }
        };
        let dtype = self.dtype.unwrap_or(own);
        self.found.insert(path, Pending { shape, dtype, fetch: Rc::new(fetch) });
    }
}

fn fetch<B: Backend, const D: usize>(tensor: Tensor<B, D>, dtype: FloatType) -> HostTensor {
    let shape = tensor.dims().to_vec();
    let data = tensor.into_data();
    let values = match dtype {
        FloatType::F32 => Values::F32(data.iter::<f32>().collect()),
        FloatType::F16 => Values::F16(data.iter::<half::f16>().collect()),
        FloatType::Bf16 => Values::Bf16(data.iter::<half::bf16>().collect()),
    };
    HostTensor { shape, values }
}
