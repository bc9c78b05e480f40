//! A tiny model, tiny scenes, and what tests ask of a finished run.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use burn::backend::Autodiff;
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use burn_ndarray::NdArray;
use dualspeed_data::{
    DataError, Example, ExampleSource, Modality, SceneConfig, SceneSource, scene_tokenizer,
};
use dualspeed_model::{DecoderConfig, Llava, LlavaConfig, VitConfig};
use dualspeed_train::{
    METRICS_FILE, StepRecord, TrainConfig, TrainJob, TrainOutcome, read_metrics, train,
};

pub type Inner = NdArray<f32>;
pub type Train = Autodiff<Inner>;

/// 16 patches of 56 x 56 pixels, two layers of width 32; periodic slow steps, so that both modes
/// run.
pub fn config() -> TrainConfig {
    let vocab_size = scene_tokenizer().unwrap().vocab_size();
    let mut config = TrainConfig {
        seed: 3,
        steps: Some(4),
        model: LlavaConfig {
            vision: VitConfig {
                hidden_size: 16,
                intermediate_size: 32,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                image_size: 56,
                projection_dim: Some(8),
                ..VitConfig::default()
            }
            .into(),
            text: DecoderConfig {
                hidden_size: 32,
                num_hidden_layers: 2,
                num_attention_heads: 2,
                intermediate_size: 48,
                vocab_size,
                ..DecoderConfig::default()
            },
            isolator_length: 2,
            ..LlavaConfig::default()
        },
        ..TrainConfig::default()
    };
    config.mode.schedule = Some("periodic".into());
    config.mode.every = 2;
    config.pruning.ratio = 0.75;
    config.batch.size = 4;
    config.checkpoint.every = 0;
    config
}

pub fn scene_config() -> SceneConfig {
    SceneConfig {
        image_size: 56,
        grid: 2,
        max_objects: 3,
        classes: 8,
        turns: 3,
        ..SceneConfig::default()
    }
}

pub fn scenes(count: usize) -> Arc<dyn ExampleSource> {
    Arc::new(SceneSource::new(scene_config(), count).unwrap())
}

pub fn model(config: &TrainConfig) -> Llava<Train> {
    config.model.init(&Default::default(), config.seed).unwrap()
}

pub fn job(config: TrainConfig, run_dir: &Path) -> TrainJob<Train> {
    let model = model(&config);
    TrainJob::new(config, model, scenes(12), run_dir)
}

pub fn run(config: TrainConfig, run_dir: &Path) -> TrainOutcome<Train> {
    train(job(config, run_dir)).unwrap()
}

/// What is done to an example.
pub type Hook = dyn Fn(usize, &mut Example) -> Result<(), DataError> + Send + Sync;

/// The usual scenes, with a hand on every example that is made with its picture.
pub struct Hooked {
    pub scenes: Arc<dyn ExampleSource>,
    pub hook: Box<Hook>,
}

impl ExampleSource for Hooked {
    fn len(&self) -> usize {
        self.scenes.len()
    }
    fn get(&self, index: usize) -> Result<Example, DataError> {
        let mut example = self.scenes.get(index)?;
        (self.hook)(index, &mut example)?;
        Ok(example)
    }
    fn outline(&self, index: usize) -> Result<Example, DataError> {
        self.scenes.outline(index)
    }
    fn modality(&self, index: usize) -> Modality {
        self.scenes.modality(index)
    }
    fn length_hint(&self, index: usize) -> usize {
        self.scenes.length_hint(index)
    }
    fn fingerprint(&self) -> String {
        self.scenes.fingerprint()
    }
}

pub fn hooked(
    hook: impl Fn(usize, &mut Example) -> Result<(), DataError> + Send + Sync + 'static,
) -> Arc<dyn ExampleSource> {
    Arc::new(Hooked { scenes: scenes(12), hook: Box::new(hook) })
}

/// The same run, told to end once its first step is done.
pub fn one_step(job: TrainJob<Train>) -> TrainJob<Train> {
    let flag = Arc::new(AtomicBool::new(false));
    TrainJob { interrupt: flag.clone(), begun: flag, ..job }
}

/// What a run reported, without the times.
pub fn records(run_dir: &Path) -> Vec<StepRecord> {
    let records = read_metrics(&run_dir.join(METRICS_FILE)).unwrap();
    records.into_iter().map(|record| StepRecord { time: Default::default(), ..record }).collect()
}

/// Every parameter of a model, in order.
pub fn weights<B: Backend, M: Module<B>>(model: &M) -> Vec<f32> {
    struct Collect(Vec<f32>);
    impl<B: Backend> ModuleVisitor<B> for Collect {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<B, D>>) {
            self.0.extend(param.val().into_data().iter::<f32>());
        }
    }
    let mut collect = Collect(Vec::new());
    model.visit(&mut collect);
    collect.0
}

pub fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The bytes of `metrics.jsonl` without what depends on the clock: `time`, the last key of a record.
pub fn timeless(run_dir: &Path) -> String {
    let text = std::fs::read_to_string(run_dir.join(METRICS_FILE)).unwrap();
    let record = |line: &str| {
        let (kept, time) = line.split_once(",\"time\":{").unwrap();
        assert_eq!(time.find('}'), Some(time.len() - 2), "nothing but `time` is cut off: {line}");
        format!("{kept}}}\n")
    };
    text.lines().map(record).collect()
}
