//! Fixtures, and comparing with them.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use burn_ndarray::NdArray;
use dualspeed::assets::{Asset, cache_dir};
use dualspeed::data::Tiling;
use dualspeed::model::import::safetensors::SafetensorsWeights;
use dualspeed::model::import::source::WeightSource;
use dualspeed::model::import::{AnyModel, Checkpoint, LoadOptions};
use dualspeed::model::{
    GenerateOptions, IGNORE_INDEX, Inputs, ModelError, TextBatch, VisionFeatures,
};
use dualspeed::prelude::*;
use serde_json::Value;

/// The backend parity is measured on.
pub type B = NdArray<f32>;

/// How far 32-bit results may lie apart.
pub const TOLERANCE: f32 = 1e-4;

pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/parity/fixtures").join(name)
}

/// Pretrained weights, if they have been fetched. Where they have not, the test is skipped and says so past the capture of
/// its output; with `DUALSPEED_ASSETS=require`, as in .ci/run, it fails.
pub fn asset(name: &str) -> Option<PathBuf> {
    let path = Asset::by_name(name).unwrap().path(&cache_dir().unwrap());
    if path.is_file() {
        return Some(path);
    }
    let problem = format!("{} is not there; `dualspeed assets fetch` brings it", path.display());
    let required = std::env::var("DUALSPEED_ASSETS").is_ok_and(|value| value == "require");
    assert!(!required, "{problem}");
    // Not `eprintln!`, which the test harness captures.
    let line = format!("skipped a test that needs {name}: {problem}\n");
    std::io::stderr().write_all(line.as_bytes()).unwrap();
    None
}

/// What the reference library computed.
pub struct Expected {
    floats: SafetensorsWeights,
    pub ints: Value,
}

impl Expected {
    pub fn of(name: &str) -> Self {
        let floats = SafetensorsWeights::open(&fixture(name).join("expected.safetensors")).unwrap();
        let ints = match std::fs::read(fixture(name).join("expected.json")) {
            Ok(text) => serde_json::from_slice(&text).unwrap(),
            Err(_) => Value::Null,
        };
        Self { floats, ints }
    }

    pub fn tensor<const D: usize>(&self, key: &str) -> Tensor<B, D> {
        Tensor::from_data(self.floats.read(key).unwrap().into_data(), &Default::default())
    }
}

pub fn ids(value: &Value) -> Vec<i64> {
    serde_json::from_value(value.clone()).unwrap()
}

pub fn load(name: &str, options: &LoadOptions) -> AnyModel<B> {
    let checkpoint = Checkpoint::open(&fixture(name), options).unwrap();
    checkpoint.load(options, &Default::default()).unwrap().0
}

pub fn load_llava(name: &str, options: &LoadOptions) -> Llava<B> {
    match load(name, options) {
        AnyModel::Llava(model) => *model,
        other => panic!("{name} is a {other:?}"),
    }
}

/// One prompt and what is seen beside it.
#[derive(Clone)]
pub struct Prompt {
    input_ids: [Vec<i64>; 1],
    labels: [Vec<i64>; 1],
    sample_ids: [String; 1],
    features: Option<VisionFeatures<B>>,
    tilings: Vec<Tiling>,
}

impl Prompt {
    /// A prompt over features of its images, each one tile.
    pub fn new(input_ids: &[i64], features: Option<&VisionFeatures<B>>) -> Self {
        Self {
            input_ids: [input_ids.to_vec()],
            labels: [vec![IGNORE_INDEX; input_ids.len()]],
            sample_ids: ["prompt".to_owned()],
            features: features.cloned(),
            tilings: Vec::new(),
        }
    }

    /// The same over images of several tiles.
    pub fn tiled(self, tilings: &[Tiling]) -> Self {
        Self { tilings: tilings.to_vec(), ..self }
    }

    fn inputs(&self) -> Inputs<'_, B> {
        Inputs {
            text: TextBatch { input_ids: &self.input_ids, labels: &self.labels },
            features: self.features.clone(),
            tilings: &self.tilings,
            sample_ids: &self.sample_ids,
            prompts: &[],
        }
    }

    /// Logits at every position, all visual tokens in their places.
    pub fn logits(&self, model: &Llava<B>) -> Tensor<B, 2> {
        self.logits_of(model, &View::Full, None).unwrap()
    }

    /// Logits at every position of a view.
    pub fn logits_of(
        &self,
        model: &Llava<B>,
        view: &View,
        pruner: Option<&dyn Pruner<B>>,
    ) -> Result<Tensor<B, 2>, ModelError> {
        model.logits(&self.inputs(), view, pruner)
    }

    /// The most likely continuation, of `length` tokens.
    pub fn greedy(&self, model: &Llava<B>, length: usize) -> Vec<i64> {
        let options = GenerateOptions { max_new_tokens: length, ..GenerateOptions::default() };
        let mut each = |_| ControlFlow::Continue(());
        let (inputs, view) = (self.inputs(), View::Full);
        model.generate(&inputs, &view, None, &options, &mut each).unwrap().ids
    }
}

/// Fails unless both are equal within the tolerance; says how far apart they are.
pub fn assert_close<const D: usize>(what: &str, found: Tensor<B, D>, expected: Tensor<B, D>) {
    assert_eq!(found.dims(), expected.dims(), "{what}: shape");
    let difference = (found - expected.clone()).abs().max().into_scalar();
    let scale = expected.abs().max().into_scalar();
    println!("{what}: largest difference {difference:.2e} of values up to {scale:.2}");
    assert!(difference <= TOLERANCE, "{what}: {difference:e} apart, values up to {scale}");
}
