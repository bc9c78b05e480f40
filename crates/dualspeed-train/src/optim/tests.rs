use burn::backend::Autodiff;
use burn::module::{Module, Param};
use burn::optim::{GradientsParams, Optimizer};
use burn::tensor::{Tensor, backend::Backend};
use burn_ndarray::NdArray;
use dualspeed_model::ParamGroup;
use dualspeed_model::nn::params::trainable_parameters;

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

fn params(model: &Two<Train>) -> Vec<ParamInfo> {
    trainable_parameters::<Train, _>(model, "")
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
    let rates = GroupRates { projector: 1e-4, ..GroupRates::uniform(2e-4) };
    GroupedAdamW::new(ADAMW, rates, max_norm, &params(model))
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
fn every_group_has_its_rate() {
    let rates =
        GroupRates { base: 1.0, vision_tower: 2.0, projector: 3.0, newline: 4.0, isolator: 5.0 };
    let of = |path: &str| ParamGroup::of(path).map(|group| rates.of(group));
    for (path, rate) in [
        ("vision_tower.layers.0.q_proj.weight", 2.0),
        ("mm_projector.linear_1.weight", 3.0),
        ("image_newline", 4.0),
        ("mode_isolator", 5.0),
        ("language_model.lm_head.weight", 1.0),
        ("lora.layers.0.q_proj.lora_a", 1.0),
    ] {
        assert_eq!(of(path), Some(rate), "{path}");
    }
    assert_eq!(of("lm_head.mm_projector"), None);

    // Half the peak of the base rate is half of every rate; groups without a parameter are left out.
    let in_use = rates.in_use(&params(&two()), 0.5);
    let expected = [(ParamGroup::Projector, 1.5), (ParamGroup::LanguageModel, 0.5)];
    assert_eq!(in_use, BTreeMap::from(expected));
}

#[test]
fn a_parameter_of_no_group_takes_the_base_rate() {
    let mut params = params(&two());
    params[0].path = "heads.labels".into();
    let rates = GroupRates { projector: 9.0, ..GroupRates::uniform(2.0) };
    let multipliers = rates.multipliers(&params);
    assert_eq!(params.iter().map(|param| multipliers[&param.id]).collect::<Vec<_>>(), [1.0, 1.0]);
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
        let optim = if on_device { optim.force_device() } else { optim };
        let mut norms = Vec::new();
        for step in 0..4 {
            let grads = grads(&model, step != 2);
            let norm;
            (model, norm) = optim.update(0.01, model, grads, step + 1);
            norms.push(match norm {
                GradNorm::Host(norm) => norm,
                GradNorm::Device(norm) => f64::from(to_f32(norm)[0]),
            });
        }
        (values(&model), norms)
    };
    let (host, host_norms) = run(false);
    let (device, device_norms) = run(true);
    for (step, (host, device)) in host_norms.iter().zip(&device_norms).enumerate() {
        assert!((host - device).abs() < 1e-5, "{step}: {host} {device}");
    }
    // The norm is that of the mean gradient, before clipping.
    let squares = |values: &[f32]| values.iter().map(|x| f64::from(x * x)).sum::<f64>();
    let whole = (squares(&PROJECTOR_GRAD) + squares(&LM_GRAD)).sqrt();
    let expected = [whole, whole / 2.0, squares(&PROJECTOR_GRAD).sqrt() / 3.0, whole / 4.0];
    for (norm, expected) in host_norms.iter().zip(expected) {
        assert!((norm - expected).abs() < 1e-6, "{norm} {expected}");
    }
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
