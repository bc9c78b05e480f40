//! Small models and batches shared by the tests.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::backend::Backend as BurnBackend;
use burn::tensor::{Int, Tensor, TensorData};
use burn_autodiff::Autodiff;
use burn_ndarray::NdArray;
use dualspeed_core::rng::SplitMix;
use dualspeed_model::config::VitConfig;
use dualspeed_model::vision::features::{
    CLS_ATTENTION, CLS_HIDDEN, KEYS, LAST_CLS_ATTENTION, LAST_KEYS, PATCH_TEXT,
};
use dualspeed_model::{
    DecoderConfig, DualSpeedObjective, Forward, GenerateOptions, Generated, IGNORE_INDEX,
    IMAGE_TOKEN_INDEX, Inputs, Llava, LlavaConfig, LoraConfig, Losses, ModelError, Needs,
    Objective, ObjectiveInputs, ParamPath, PruneContext, PruneError, Pruner, Selection,
    StepContext, TextBatch, Tiling, View, VisionFeatures, VisualTokens, select,
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
        text: DecoderConfig {
            hidden_size: 16,
            num_hidden_layers: 2,
            num_attention_heads: 4,
            num_key_value_heads: Some(2),
            intermediate_size: 20,
            vocab_size: 23,
            ..DecoderConfig::default()
        },
        isolator_length: 3,
        ..LlavaConfig::default()
    }
}

pub fn lora() -> LoraConfig {
    LoraConfig { r: 3, alpha: 6.0, dropout: 0.25, ..LoraConfig::default() }
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

/// Every feature that CLIP's transformer makes, of random images.
pub fn encode<T: Backend>(model: &Llava<T>, images: usize) -> VisionFeatures<T> {
    let needs = [CLS_ATTENTION, KEYS, PATCH_TEXT, CLS_HIDDEN, LAST_CLS_ATTENTION, LAST_KEYS];
    model.encode(random([images, 3, 16, 16], 9), &Needs::of(needs)).expect("encode")
}

/// The features of some of the images.
pub fn images<T: Backend>(
    features: &VisionFeatures<T>,
    which: std::ops::Range<usize>,
) -> VisionFeatures<T> {
    features.clone().map(|_, feature| feature.narrow(0, which.start, which.len()))
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
#[derive(Clone)]
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

    /// One image and a one-token answer, a text-only sample, two images with two answers.
    pub fn mixed() -> Self {
        let (img, no) = (IMAGE_TOKEN_INDEX, IGNORE_INDEX);
        Self::new(
            vec![vec![1, img, 7, 8, 9, 2], vec![1, 5, 6, 2], vec![img, 4, 10, img, 11, 12, 13, 2]],
            vec![
                vec![no, no, no, no, 9, 2],
                vec![no, no, 6, 2],
                vec![no, no, 10, no, no, no, 13, 2],
            ],
        )
    }

    /// A prompt without labels.
    pub fn prompt(ids: &[i64]) -> Self {
        let labels = vec![vec![IGNORE_INDEX; ids.len()]];
        Self { sample_ids: vec!["prompt".into()], ..Self::new(vec![ids.to_vec()], labels) }
    }

    /// Some of the samples, with the ids they have in the whole batch.
    pub fn samples(&self, which: std::ops::Range<usize>) -> Self {
        Self {
            input_ids: self.input_ids[which.clone()].to_vec(),
            labels: self.labels[which.clone()].to_vec(),
            sample_ids: self.sample_ids[which].to_vec(),
        }
    }

    pub fn text(&self) -> TextBatch<'_> {
        TextBatch { input_ids: &self.input_ids, labels: &self.labels }
    }

    pub fn inputs<T: Backend>(&self, features: Option<&VisionFeatures<T>>) -> Inputs<'_, T> {
        self.tiled(features, &[])
    }

    pub fn tiled<'a, T: Backend>(
        &'a self,
        features: Option<&VisionFeatures<T>>,
        tilings: &'a [Tiling],
    ) -> Inputs<'a, T> {
        let (text, sample_ids) = (self.text(), self.sample_ids.as_slice());
        Inputs { text, features: features.cloned(), tilings, sample_ids, prompts: &[] }
    }
}

/// An evaluation step.
pub fn inference() -> StepContext {
    StepContext::inference(1)
}

/// A generation that nobody stops.
pub fn generate(
    model: &Llava<B>,
    inputs: &Inputs<'_, B>,
    view: &View,
    pruner: Option<&dyn Pruner<B>>,
    options: &GenerateOptions,
) -> Result<Generated, ModelError> {
    model.generate(inputs, view, pruner, options, &mut |_| ControlFlow::Continue(()))
}

/// The terms of DualSpeed's loss.
pub fn losses<T: Backend>(
    model: &Llava<T>,
    student: &Forward<T>,
    teacher: Option<&Forward<T>>,
    objective: DualSpeedObjective,
) -> Result<Losses<T>, ModelError> {
    objective.losses(&ObjectiveInputs { student, teacher, lm_head: model.lm_head_weight() })
}

/// The sum of one term of a loss.
pub fn sum<T: Backend>(losses: &Losses<T>, name: &str) -> f32 {
    values(&losses.part(name).unwrap_or_else(|| panic!("no part {name}")).sum)[0]
}

/// A selection carried out on the tokens that it was made from.
pub struct KeptTokens<T: Backend> {
    /// `[images, longest, width]`.
    pub tokens: Tensor<T, 3>,
    pub lengths: Vec<usize>,
    pub indices: Option<Tensor<T, 2, Int>>,
    /// Whether the tokens are hidden states, which are still to be projected.
    pub unprojected: bool,
    pub selection: Selection<T>,
}

/// Prunes, and gives the tokens that are left.
pub fn prune<T: Backend>(
    pruner: &dyn Pruner<T>,
    visual: &VisualTokens<T>,
    keep: usize,
    ctx: &PruneContext,
) -> Result<KeptTokens<T>, PruneError> {
    let selection = select(pruner, visual, keep, ctx)?;
    let unprojected = selection.is_before_projector();
    let tokens = match unprojected {
        true => selection.apply_to_features(&visual.features),
        false => selection.apply_to(visual.projected.clone()),
    };
    let (lengths, indices) = (selection.lengths().to_vec(), selection.picks(visual.num_tokens()));
    assert_eq!(tokens.dims()[..2], [lengths.len(), selection.longest()]);
    Ok(KeptTokens { tokens, lengths, indices, unprojected, selection })
}

/// The gradient of every parameter that has one, by path.
pub fn gradients<M: Module<A>>(module: &M, loss: &Tensor<A, 1>) -> BTreeMap<String, Vec<f32>> {
    struct Collect {
        path: ParamPath,
        grads: <A as burn::tensor::backend::AutodiffBackend>::Gradients,
        found: BTreeMap<String, Vec<f32>>,
    }
    impl ModuleVisitor<A> for Collect {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<A, D>>) {
            if let Some(grad) = param.val().grad(&self.grads) {
                self.found.insert(self.path.path(), values(&grad));
            }
        }
    }
    let (path, found) = (ParamPath::default(), BTreeMap::new());
    let mut collect = Collect { path, grads: loss.backward(), found };
    module.visit(&mut collect);
    collect.found
}

/// The same module with every parameter below `prefix` changed by `f`, which is given its path.
pub fn map_params<T: Backend, M: Module<T>>(module: M, f: impl Fn(&str, &mut Vec<f32>)) -> M {
    struct Change<F> {
        path: ParamPath,
        f: F,
    }
    impl<T: Backend, F: Fn(&str, &mut Vec<f32>)> ModuleMapper<T> for Change<F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.path.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, _container: &str) {
            self.path.exit();
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<T, D>>) -> Param<Tensor<T, D>> {
            let path = self.path.path();
            param.map(|tensor| {
                let (mut numbers, shape) = (values(&tensor), tensor.dims());
                (self.f)(&path, &mut numbers);
                let changed = Tensor::from_data(TensorData::new(numbers, shape), &tensor.device());
                changed.set_require_grad(tensor.is_require_grad())
            })
        }
    }
    module.map(&mut Change { path: ParamPath::default(), f })
}

/// Random numbers in every parameter below `prefix`, so that nothing is 0 or 1 by its initial value.
pub fn scrambled<T: Backend, M: Module<T>>(module: M, prefix: &str, scale: f32) -> M {
    map_params(module, |path, numbers| {
        if path.starts_with(prefix) {
            let mut rng = SplitMix::new(&[dualspeed_core::rng::hash_str(path)]);
            numbers.iter_mut().for_each(|x| *x += scale * (2.0 * rng.uniform() as f32 - 1.0));
        }
    })
}

/// Compares the gradients of parameters that `wanted` picks with central differences of `loss`, at the entry of each where the
/// gradient is largest. Returns how many parameters were compared.
pub fn check_differences<M: Module<B> + Clone>(
    module: &M,
    gradients: &BTreeMap<String, Vec<f32>>,
    wanted: impl Fn(&str) -> bool,
    step: f32,
    loss: impl Fn(&M) -> f32,
) -> usize {
    let mut compared = 0;
    for (path, gradient) in gradients.iter().filter(|(path, _)| wanted(path)) {
        let largest =
            (0..gradient.len()).max_by(|a, b| gradient[*a].abs().total_cmp(&gradient[*b].abs()));
        let at = largest.expect("a parameter has numbers");
        let moved = |by: f32| {
            loss(&map_params(module.clone(), |here, numbers| {
                if here == path {
                    numbers[at] += by;
                }
            }))
        };
        let numeric = (moved(step) - moved(-step)) / (2.0 * step);
        let analytic = gradient[at];
        assert!(
            (numeric - analytic).abs() <= 2e-4 + 0.02 * analytic.abs(),
            "{path}[{at}]: by differences {numeric}, by backward {analytic}"
        );
        // Rounding alone must not pass for a gradient.
        compared += usize::from(analytic.abs() > 1e-3);
    }
    compared
}
