use burn::backend::Autodiff;
use burn::module::{Module, Param};
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::{Tensor, backend::Backend};
use burn_ndarray::NdArray;

use super::*;

type Inner = NdArray<f32>;
type Train = Autodiff<Inner>;

#[derive(Module, Debug)]
struct Two<B: Backend> {
    mm_projector: Param<Tensor<B, 2>>,
    language_model: Param<Tensor<B, 1>>,
}

fn two() -> Two<Train> {
    let device = Default::default();
    Two {
        mm_projector: Param::from_tensor(Tensor::from_floats([[1.0, -2.0], [0.5, 3.0]], &device)),
        language_model: Param::from_tensor(Tensor::from_floats([0.1, 0.2, -0.3], &device)),
    }
}

const PROJECTOR_GRAD: [f32; 4] = [3.0, 0.0, -1.0, 0.5];
const LM_GRAD: [f32; 3] = [2.0, -4.0, 1.0];

fn grads(model: &Two<Train>, with_lm: bool) -> GradientsParams {
    let device = Default::default();
    let mut grads = GradientsParams::new();
    let grad = Tensor::<Inner, 1>::from_floats(PROJECTOR_GRAD, &device).reshape([2, 2]);
    grads.register(model.mm_projector.id, grad);
    if with_lm {
        grads.register(model.language_model.id, Tensor::<Inner, 1>::from_floats(LM_GRAD, &device));
    }
    grads
}

const ADAMW: AdamW = AdamW { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1 };

fn optimiser(model: &Two<Train>, max_norm: f64) -> GroupedAdamW<Train> {
    let rates = GroupRates { projector: 0.5, isolator: 1.0 };
    GroupedAdamW::new(ADAMW, rates, max_norm, &trainable_params(model), &Default::default())
}

fn values(model: &Two<Train>) -> Vec<f32> {
    let mut values = to_f32(model.mm_projector.val());
    values.extend(to_f32(model.language_model.val()));
    values
}

/// AdamW written out as in PyTorch's documentation, in f64.
fn reference(param: f64, grads: &[f64], lr: f64) -> f64 {
    let (mut p, mut m, mut v) = (param, 0.0, 0.0);
    for (t, g) in grads.iter().enumerate() {
        p -= lr * ADAMW.weight_decay * p;
        m = 0.9 * m + 0.1 * g;
        v = 0.999 * v + 0.001 * g * g;
        let (m_hat, v_hat) =
            (m / (1.0 - 0.9f64.powi(t as i32 + 1)), v / (1.0 - 0.999f64.powi(t as i32 + 1)));
        p -= lr * m_hat / (v_hat.sqrt() + ADAMW.eps);
    }
    p
}

#[test]
fn groups_follow_the_path() {
    let groups: Vec<(String, Group)> =
        trainable_params(&two()).into_iter().map(|param| (param.path, param.group)).collect();
    assert_eq!(
        groups,
        [
            ("mm_projector".to_owned(), Group::Projector),
            ("language_model".to_owned(), Group::LanguageModel),
        ]
    );
    assert_eq!(Group::of("llava.lora.layers.0.q_proj.lora_a"), Group::LanguageModel);
    assert_eq!(Group::of("llava.mode_isolator"), Group::Isolator);
}

#[test]
fn updates_are_those_of_the_formula_with_a_rate_per_group() {
    let mut model = two();
    let mut optim = optimiser(&model, 0.0);
    let before = values(&model);
    for _ in 0..3 {
        let grads = grads(&model, true);
        model = Optimizer::<Two<Train>, Train>::step(&mut optim, 0.01, model, grads);
    }
    let all = PROJECTOR_GRAD.iter().chain(&LM_GRAD);
    for (index, ((after, before), grad)) in values(&model).iter().zip(before).zip(all).enumerate() {
        let lr = if index < 4 { 0.005 } else { 0.01 };
        let expected = reference(f64::from(before), &[f64::from(*grad); 3], lr);
        assert!((f64::from(*after) - expected).abs() < 1e-6, "{index}: {after} {expected}");
    }
}

#[test]
fn host_and_tensor_implementations_agree() {
    let run = |on_device: bool| {
        let mut model = two();
        let optim = optimiser(&model, 1.0);
        let mut optim = if on_device { optim.force_device() } else { optim };
        for step in 0..4 {
            optim.state().grad_scale = 1.0 / (step + 1) as f64;
            let grads = grads(&model, step != 2);
            model = Optimizer::<Two<Train>, Train>::step(&mut optim, 0.01, model, grads);
        }
        let norm = match optim.state().grad_norm.take() {
            Some(GradNorm::Host(norm)) => norm,
            Some(GradNorm::Device(norm)) => f64::from(to_f32(norm)[0]),
            None => panic!("no norm"),
        };
        (values(&model), norm)
    };
    let (host, host_norm) = run(false);
    let (device, device_norm) = run(true);
    assert!((host_norm - device_norm).abs() < 1e-5, "{host_norm} {device_norm}");
    for (a, b) in host.iter().zip(&device) {
        assert!((a - b).abs() < 1e-6, "{host:?} {device:?}");
    }
}

#[test]
fn clipping_bounds_the_global_norm() {
    // Adam's first step hides the gradient's size; the first moment does not.
    let model = two();
    let mut optim = optimiser(&model, 1.0);
    let grads = grads(&model, true);
    Optimizer::<Two<Train>, Train>::step(&mut optim, 0.01, model, grads);
    let squares: f64 = optim
        .state()
        .moments
        .values()
        .flat_map(|moments| moments.to_host().m)
        .map(|m| (f64::from(m) / 0.1).powi(2))
        .sum();
    assert!((squares.sqrt() - 1.0).abs() < 1e-4, "{squares}");
}

#[test]
fn a_parameter_without_gradient_is_left_alone() {
    let model = two();
    let mut optim = optimiser(&model, 1.0);
    let grads = grads(&model, false);
    let before = to_f32(model.language_model.val());
    let model = Optimizer::<Two<Train>, Train>::step(&mut optim, 0.01, model, grads);
    assert_eq!(to_f32(model.language_model.val()), before);
    assert_eq!(optim.state().moments.len(), 1);
}

#[test]
fn the_record_restores_the_state() {
    let model = two();
    let mut optim = optimiser(&model, 1.0);
    let first = grads(&model, true);
    let model = Optimizer::<Two<Train>, Train>::step(&mut optim, 0.01, model, first);
    let record = Optimizer::<Two<Train>, Train>::to_record(&optim);
    let mut restored: GroupedAdamW<Train> =
        Optimizer::<Two<Train>, Train>::load_record(optimiser(&model, 1.0), record);
    let (one, two) = (grads(&model, true), grads(&model, true));
    let a = Optimizer::<Two<Train>, Train>::step(&mut optim, 0.01, model.clone(), one);
    let b = Optimizer::<Two<Train>, Train>::step(&mut restored, 0.01, model, two);
    assert_eq!(values(&a), values(&b));
}
