//! Small models and batches shared by the tests.

use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{Tensor, TensorData};
use burn_autodiff::Autodiff;
use burn_ndarray::NdArray;
use dualspeed_model::rng::SplitMix;
use dualspeed_model::{
    IGNORE_INDEX, IMAGE_TOKEN_INDEX, LlamaConfig, Llava, LlavaConfig, LoraConfig, LoraTarget,
    StepContext, TextBatch, VisionInput, VisualTokens, VitConfig,
};
use dualspeed_ops::Backend;

pub type B = NdArray<f32>;
pub type A = Autodiff<B>;

pub fn device<T: BurnBackend>() -> T::Device {
    Default::default()
}

pub fn config() -> LlavaConfig {
    LlavaConfig {
        vision: VitConfig {
            hidden_size: 16,
            intermediate_size: 24,
            num_hidden_layers: 3,
            num_attention_heads: 2,
            image_size: 16,
            patch_size: 4,
            projection_dim: Some(6),
            ..VitConfig::default()
        }
        .into(),
        text: LlamaConfig {
            hidden_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: Some(2),
            intermediate_size: 20,
            vocab_size: 23,
            ..LlamaConfig::default()
        },
        isolator_length: 3,
        ..LlavaConfig::default()
    }
}

pub fn lora() -> LoraConfig {
    LoraConfig { r: 3, alpha: 6.0, dropout: 0.25, targets: LoraTarget::ALL.to_vec() }
}

pub fn model<T: Backend>(config: &LlavaConfig) -> Llava<T> {
    config.init(&device::<T>(), 5).expect("a valid configuration")
}

pub fn random<T: Backend, const D: usize>(shape: [usize; D], seed: u64) -> Tensor<T, D> {
    let mut rng = SplitMix::new(&[seed]);
    let values: Vec<f32> =
        (0..shape.iter().product()).map(|_| 2.0 * rng.uniform() as f32 - 1.0).collect();
    Tensor::from_data(TensorData::new(values, shape), &device::<T>())
}

pub fn encode<T: Backend>(model: &Llava<T>, images: usize) -> VisualTokens<T> {
    let needs = dualspeed_model::Needs {
        cls_attention: true,
        keys: true,
        patch_text: true,
        cls_hidden: true,
        last_layer: true,
        ..Default::default()
    };
    model.encode(VisionInput::Pixels(random([images, 3, 16, 16], 9)), needs).expect("encode")
}

pub fn values<T: BurnBackend, const D: usize>(x: &Tensor<T, D>) -> Vec<f32> {
    x.to_data().iter::<f32>().collect()
}

pub fn assert_close(a: &[f32], b: &[f32], tolerance: f32) {
    assert_eq!(a.len(), b.len());
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        assert!((x - y).abs() <= tolerance, "at {i}: {x} and {y}");
    }
}

/// A batch on the host.
pub struct Batch {
    pub input_ids: Vec<Vec<i64>>,
    pub labels: Vec<Vec<i64>>,
}

impl Batch {
    /// One image and a one-token answer, a text-only sample, two images with two answers.
    pub fn mixed() -> Self {
        let (img, no) = (IMAGE_TOKEN_INDEX, IGNORE_INDEX);
        Self {
            input_ids: vec![
                vec![1, img, 7, 8, 9, 2],
                vec![1, 5, 6, 2],
                vec![img, 4, 10, img, 11, 12, 13, 2],
            ],
            labels: vec![
                vec![no, no, no, no, 9, 2],
                vec![no, no, 6, 2],
                vec![no, no, 10, no, no, no, 13, 2],
            ],
        }
    }

    pub fn text(&self) -> TextBatch<'_> {
        TextBatch { input_ids: &self.input_ids, labels: &self.labels }
    }

    pub fn ctx(&self) -> StepContext {
        let ids = (0..self.input_ids.len()).map(|i| format!("sample-{i}")).collect();
        StepContext::inference(1, ids)
    }
}
