//! Models that other libraries saved, what those computed from them, and comparing with it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{Tensor, TensorData};
use burn_autodiff::Autodiff;
use burn_ndarray::NdArray;
use dualspeed_model::import::safetensors::SafetensorsWeights;
use dualspeed_model::import::source::WeightSource;
use dualspeed_model::import::{AnyModel, Checkpoint, LoadOptions};
use dualspeed_model::vision::Needs;
use dualspeed_model::{Decoder, Inputs, Llava, ParamPath, TextBatch, VisionTower};
use dualspeed_ops::Backend;
use serde_json::Value;

pub type B = NdArray<f32>;
pub type A = Autodiff<B>;

/// How far 32-bit logits may lie apart.
pub const LOGITS: f32 = 1e-4;

/// A file or directory of the repository's tests.
pub fn tests(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests").join(path)
}

/// A directory of tests/parity/fixtures.
pub fn parity(name: &str) -> PathBuf {
    tests("parity/fixtures").join(name)
}

/// What was computed from a fixture: tensors, and the rest.
pub fn expected(name: &str) -> (Floats, Value) {
    let dir = parity(name);
    (Floats::open(&dir.join("expected.safetensors")), json(&dir.join("expected.json")))
}

/// A model of any kind.
pub fn load<T: Backend>(dir: &Path, options: &LoadOptions) -> AnyModel<T> {
    let checkpoint = Checkpoint::open(dir, options).unwrap();
    checkpoint.load(options, &Default::default()).unwrap().0
}

pub fn load_llava<T: Backend>(dir: &Path, options: &LoadOptions) -> Llava<T> {
    match load(dir, options) {
        AnyModel::Llava(model) => *model,
        other => panic!("{} is a {other:?}", dir.display()),
    }
}

pub fn load_decoder<T: Backend>(dir: &Path) -> Decoder<T> {
    match load(dir, &LoadOptions::default()) {
        AnyModel::Decoder(model) => *model,
        other => panic!("{} is a {other:?}", dir.display()),
    }
}

/// Named tensors in a safetensors file.
pub struct Floats(SafetensorsWeights);

impl Floats {
    pub fn open(path: &Path) -> Self {
        Self(SafetensorsWeights::open(path).unwrap())
    }

    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.0.tensors().keys().map(String::as_str)
    }

    pub fn tensor<T: BurnBackend, const D: usize>(&self, key: &str) -> Tensor<T, D> {
        Tensor::from_data(self.0.read(key).unwrap().into_data(), &Default::default())
    }

    /// The numbers of a tensor of any rank.
    pub fn values(&self, key: &str) -> Vec<f32> {
        self.0.read(key).unwrap().to_f32()
    }
}

pub fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A list of integers, or a list of such lists.
pub fn ids<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

pub fn values<T: BurnBackend, const D: usize>(x: &Tensor<T, D>) -> Vec<f32> {
    x.to_data().iter::<f32>().collect()
}

/// A batch on the host.
pub struct Batch {
    pub input_ids: Vec<Vec<i64>>,
    pub labels: Vec<Vec<i64>>,
    pub sample_ids: Vec<String>,
}

impl Batch {
    pub fn new(input_ids: Vec<Vec<i64>>, labels: Vec<Vec<i64>>) -> Self {
        let sample_ids = (0..input_ids.len()).map(|i| format!("sample-{i}")).collect();
        Self { input_ids, labels, sample_ids }
    }

    /// One sample without labels.
    pub fn prompt(input_ids: &[i64]) -> Self {
        Self::new(
            vec![input_ids.to_vec()],
            vec![vec![dualspeed_model::IGNORE_INDEX; input_ids.len()]],
        )
    }

    /// Some of the samples.
    pub fn samples(&self, range: std::ops::Range<usize>) -> Self {
        Self {
            input_ids: self.input_ids[range.clone()].to_vec(),
            labels: self.labels[range.clone()].to_vec(),
            sample_ids: self.sample_ids[range].to_vec(),
        }
    }

    /// With the features of the pictures that belong to it.
    pub fn inputs<T: Backend>(
        &self,
        model: &Llava<T>,
        pixel_values: Option<Tensor<T, 4>>,
    ) -> Inputs<'_, T> {
        let encode = |pixels| model.encode(pixels, &Needs::none()).unwrap();
        Inputs {
            text: TextBatch { input_ids: &self.input_ids, labels: &self.labels },
            features: pixel_values.map(encode),
            tilings: &[],
            sample_ids: &self.sample_ids,
            prompts: &[],
        }
    }
}

/// Pixels of no picture in particular, for a model's tower: `[images, 3, side, side]`.
pub fn pixels<T: Backend>(model: &Llava<T>, images: usize) -> Tensor<T, 4> {
    let side = model.vision_tower.geometry().image_size;
    let shape = [images, 3, side, side];
    let ramp: Vec<f32> =
        (0..shape.iter().product::<usize>()).map(|i| (i % 97) as f32 / 48.0 - 1.0).collect();
    Tensor::from_data(TensorData::new(ramp, shape), &Default::default())
}

/// The largest difference, which must be within `tolerance`.
pub fn assert_close(what: &str, found: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(found.len(), expected.len(), "{what}: length");
    let pairs = || found.iter().zip(expected);
    assert!(pairs().all(|(a, b)| a.is_finite() && b.is_finite()), "{what}: not finite");
    let difference = pairs().fold(0f32, |most, (a, b)| most.max((a - b).abs()));
    let scale = expected.iter().fold(0f32, |most, value| most.max(value.abs()));
    println!("{what}: largest difference {difference:.2e} of values up to {scale:.2}");
    assert!(difference <= tolerance, "{what}: {difference:e} apart, values up to {scale}");
}

pub fn norm(values: &[f32]) -> f64 {
    values.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt()
}

/// `|found - expected| / |expected|`, 2-norms.
pub fn relative_difference(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "length");
    let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
    norm(&difference) / norm(expected)
}

/// The gradients of a model's parameters by path, matrices turned to PyTorch's `[out, in]`.
pub fn gradients<M: Module<A>>(
    module: &M,
    root: &str,
    grads: &<A as burn::tensor::backend::AutodiffBackend>::Gradients,
) -> BTreeMap<String, Vec<f32>> {
    struct Collector<'a> {
        walk: ParamPath,
        grads: &'a <A as burn::tensor::backend::AutodiffBackend>::Gradients,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor<A> for Collector<'_> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.walk.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.walk.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
            let Some(grad) = param.val().grad(self.grads) else { return };
            let grad = if self.walk.is_transposed(D) { grad.transpose() } else { grad };
            self.found.insert(self.walk.path(), values(&grad));
        }
    }
    let mut collector = Collector { walk: ParamPath::new(root), grads, found: BTreeMap::new() };
    module.visit(&mut collector);
    collector.found
}
