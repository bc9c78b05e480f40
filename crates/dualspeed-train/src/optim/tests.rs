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
            let updated;
            (model, updated) = optim.update(0.01, model, grads, step + 1, None);
            norms.push(outcome(updated).0);
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

/// Norm and decision on the host.
fn outcome(updated: Updated<Inner>) -> (f64, bool) {
    match updated {
        Updated::Host { grad_norm, applied } => (grad_norm, applied),
        Updated::Device { grad_norm, applied } => {
            (f64::from(to_f32(grad_norm)[0]), to_f32(applied) == [1.0])
        }
    }
}

/// Parameters, moments and counts of updates, by bits.
fn everything(model: &Two<Train>, optim: &GroupedAdamW<Train>) -> Vec<u32> {
    optim.state().settle_but(0);
    let mut all: Vec<u32> = values(model).into_iter().map(f32::to_bits).collect();
    for param in params(model) {
        if let Some(moments) = optim.state().moments.get(&param.id).map(Moments::to_host) {
            all.push(moments.updates as u32);
            all.extend(moments.m.iter().chain(&moments.v).map(|value| value.to_bits()));
        }
    }
    all
}

/// A step that is skipped might as well not have been: also the updates that follow are the same, bit for bit, and nobody
/// waited for the decision.
#[test]
fn a_skipped_step_leaves_no_trace() {
    type Bad = fn(&mut Vec<f32>, &mut Vec<f32>);
    let causes: [Bad; 5] = [
        |grad, _| grad[1] = f32::NAN,
        |grad, _| grad[2] = f32::NEG_INFINITY,
        // Finite, but not their squares in f32; so the host, which adds in f64, looks at the update.
        |grad, _| grad[0] = 3e38,
        |_, losses| losses[1] = f32::INFINITY,
        |_, losses| losses[0] = f32::NAN,
    ];
    let device = Default::default();
    for (index, cause) in causes.into_iter().enumerate() {
        for on_device in [false, true] {
            let run = |with_bad: bool| {
                let mut model = two();
                let optim = optimiser(&model, if index == 2 { 0.0 } else { 1.0 });
                let optim = if on_device { optim.force_device() } else { optim };
                let mut seen = Vec::new();
                for step in 0..6 {
                    let mut grad = PROJECTOR_GRAD.to_vec();
                    let mut losses = vec![0.5, 2.0];
                    let bad = [1, 3, 4].contains(&step);
                    if bad && !with_bad {
                        continue;
                    }
                    if bad {
                        cause(&mut grad, &mut losses);
                    }
                    let mut grads = grads(&model, step != 2);
                    let id = model.mm_projector.id;
                    let _ = grads.remove::<Inner, 2>(id);
                    let grad = Tensor::<Inner, 1>::from_floats(grad.as_slice(), &device);
                    grads.register(id, grad.reshape([2, 2]));
                    let losses = Tensor::from_floats(losses.as_slice(), &device);
                    let updated;
                    (model, updated) = optim.update(0.01, model, grads, 1, Some(losses));
                    let applied = outcome(updated).1;
                    assert_eq!(applied, !bad, "cause {index}, step {step}, device {on_device}");
                    // As the training loop: told one step later.
                    if on_device {
                        seen.push(applied);
                        if seen.len() > 1 {
                            optim.settle(seen.remove(0));
                        }
                    }
                }
                everything(&model, &optim)
            };
            assert_eq!(run(true), run(false), "cause {index}, device {on_device}");
        }
    }
}

/// With constants that let finite gradients make infinite parameters, every value is looked at before one is written.
#[test]
fn an_update_that_is_not_finite_is_skipped() {
    for on_device in [false, true] {
        // 0 / 0 where a gradient has always been 0: `eps` is 0 in f32.
        for (eps, lr, weight_decay) in [(1e-300, 0.01, 0.0), (1e-8, 1e38, 0.0), (1e-8, 1.0, 1e38)] {
            let model = two();
            let adamw = AdamW { eps, weight_decay, ..ADAMW };
            let optim =
                GroupedAdamW::<Train>::new(adamw, GroupRates::uniform(lr), 1.0, &params(&model));
            let optim = if on_device { optim.force_device() } else { optim };
            let before = values(&model);
            let mut model = model;
            let mut skipped = 0;
            for _ in 0..3 {
                let grads = grads(&model, true);
                let updated;
                (model, updated) = optim.update(lr, model, grads, 1, None);
                skipped += u32::from(!outcome(updated).1);
                assert!(values(&model).iter().all(|value| value.is_finite()));
            }
            assert!(skipped > 0, "eps {eps}, lr {lr}, device {on_device}");
            if eps == 1e-300 {
                assert_eq!((skipped, values(&model)), (3, before));
            }
        }
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
