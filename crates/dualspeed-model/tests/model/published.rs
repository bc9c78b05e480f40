//! Losses, picks and gradients of DualSpeed's published code, through the objective that trains. What the files hold is in
//! tests/published-code/README.md.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::tensor::Tensor;
use dualspeed_model::import::LoadOptions;
use dualspeed_model::import::names::path_of;
use dualspeed_model::objective::{CROSS_ENTROPY, DISTILLATION};
use dualspeed_model::{
    DualSpeedObjective, Llava, Losses, Objective, ObjectiveInputs, PrunerSpec, Registry,
    StepContext, Trainable, View,
};
use serde_json::Value;

use crate::fixtures::{
    A, Batch, Floats, assert_close, gradients, ids, json, load_llava, norm, relative_difference,
    tests, values,
};

/// How far any number of a gradient may lie from the true one, in the true one's norm.
const GRADIENTS: f64 = 1e-6;
/// The same from the published numbers of fast steps, which are 32-bit sums themselves: up to 1.02e-6 from those in 64 bits.
const PUBLISHED_FAST_GRADIENTS: f64 = 2e-6;
/// How far a gradient as a whole may lie; the published ones are up to 2.6e-6 from those in 64 bits.
const WHOLE_GRADIENTS: f64 = 5e-6;
/// How far 32-bit losses of about 6 nats may lie apart: four of the last places.
const LOSSES: f32 = 2e-6;
/// The pruned view: `int(0.1 * 36)` tokens of an image, and the isolator.
const FAST: View = View::Pruned { keep: 3, isolator: true };

fn published(path: &str) -> PathBuf {
    tests("published-code").join(path)
}

fn batch(expected: &Value) -> Batch {
    Batch::new(ids(&expected["input_ids"]), ids(&expected["labels"]))
}

fn pixel_values(file: &str, images: usize) -> Tensor<A, 4> {
    Floats::open(&published(file)).tensor("pixel_values").narrow(0, 0, images)
}

/// Everything in one directory: full tuning.
fn full() -> Llava<A> {
    let tower = Some(published("layouts/tower"));
    let options = LoadOptions { vision_tower: tower, ..LoadOptions::default() };
    let model = load_llava(&published("layouts/a-full"), &options);
    assert_eq!(model.config.isolator_length, 4);
    model.with_trainable(Trainable::full()).unwrap()
}

/// What a step of one mode makes of a micro-batch: the terms of its loss, and the tokens kept of each image.
fn step(
    model: &Llava<A>,
    batch: &Batch,
    pixel_values: Option<Tensor<A, 4>>,
    slow: bool,
) -> (Losses<A>, Vec<Vec<i64>>) {
    let pruner = Registry::<A>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let (inputs, ctx) = (batch.inputs(model, pixel_values), StepContext::training(0, 0));
    let (student, teacher) = if slow {
        let teacher = inputs
            .features
            .is_some()
            .then(|| model.forward_teacher(&inputs, &FAST, &*pruner, &ctx).unwrap());
        (model.forward(&inputs, &View::Full, None, &ctx).unwrap(), teacher)
    } else {
        (model.forward(&inputs, &FAST, Some(&*pruner), &ctx).unwrap(), None)
    };
    let picks = teacher.as_ref().unwrap_or(&student).picks.clone();
    let kept = picks.map_or(Vec::new(), |picks| {
        let [_, longest] = picks.dims();
        let picks: Vec<i64> = picks.into_data().iter().collect();
        picks.chunks(longest).map(<[i64]>::to_vec).collect()
    });
    let inputs = ObjectiveInputs {
        student: &student,
        teacher: teacher.as_ref(),
        lm_head: model.lm_head_weight(),
    };
    (DualSpeedObjective::default().losses(&inputs).unwrap(), kept)
}

fn part(losses: &Losses<A>, name: &str) -> f32 {
    losses.part(name).map_or(0.0, |part| values(&part.sum)[0])
}

/// Losses and picks of one mode as `expected.json` has them; the gradients by path.
fn check_mode(
    case: &str,
    expected: &Value,
    model: &Llava<A>,
    pixel_values: Tensor<A, 4>,
    slow: bool,
) -> BTreeMap<String, Vec<f32>> {
    let (mode, images) = (if slow { "slow" } else { "fast" }, pixel_values.dims()[0]);
    let numbers = &expected[mode];
    let (losses, kept) = step(model, &batch(expected), Some(pixel_values), slow);
    let all: Vec<Vec<i64>> = ids(&numbers["kept"]);
    assert_eq!(kept, all[..images], "{case} {mode}");
    let loss = losses.loss(losses.tokens).unwrap();
    let number = |key: &str| numbers[key].as_f64().unwrap() as f32;
    let n = losses.tokens as f32;
    let mut found = vec![values(&loss)[0], part(&losses, CROSS_ENTROPY) / n];
    let mut wanted = vec![number("loss")];
    if slow {
        found.push(part(&losses, DISTILLATION) / n);
        wanted.extend([number("student_ce_loss"), number("distill_loss")]);
    } else {
        wanted.push(number("teacher_ce_loss"));
    }
    assert_close(&format!("{case} {mode}: losses"), &found, &wanted, LOSSES);
    gradients(model, "", &loss.backward())
}

/// Compares gradients by the keys of a file, all of them; says which is furthest away.
fn check_gradients(
    what: &str,
    found: &BTreeMap<String, Vec<f32>>,
    floats: &Floats,
    prefix: &str,
    tolerance: f64,
) -> usize {
    let keys: Vec<&str> = floats.keys().filter(|key| key.starts_with(prefix)).collect();
    check_keys(what, found, floats, prefix, &keys, tolerance)
}

/// [`check_gradients`] for some keys of a file.
fn check_keys(
    what: &str,
    found: &BTreeMap<String, Vec<f32>>,
    floats: &Floats,
    prefix: &str,
    keys: &[&str],
    tolerance: f64,
) -> usize {
    let (mut worst, mut worst_whole) = ((0.0, ""), (0.0, ""));
    for key in keys {
        let path = path_of(key.trim_start_matches(prefix)).unwrap();
        let found = found.get(&path).unwrap_or_else(|| panic!("{what}: {path} has no gradient"));
        let expected = floats.values(key);
        let whole = relative_difference(found, &expected);
        let pairs = found.iter().zip(&expected);
        let most = pairs.fold(0f32, |most, (a, b)| most.max((a - b).abs()));
        let most = f64::from(most) / norm(&expected);
        worst = if most > worst.0 { (most, *key) } else { worst };
        worst_whole = if whole > worst_whole.0 { (whole, *key) } else { worst_whole };
    }
    println!(
        "{what}: {} gradients, the furthest number {:.2e} of the norm: {}",
        keys.len(),
        worst.0,
        worst.1
    );
    println!(
        "{what}: the furthest as a whole {:.2e} of the norm: {}",
        worst_whole.0, worst_whole.1
    );
    assert!(worst.0 <= tolerance, "{what}: {}: {:e}", worst.1, worst.0);
    assert!(worst_whole.0 <= WHOLE_GRADIENTS, "{what}: {}: {:e}", worst_whole.1, worst_whole.0);
    keys.len()
}

/// The 2-norms of all gradients and of the model's parts.
fn check_norms(what: &str, found: &BTreeMap<String, Vec<f32>>, numbers: &Value) {
    let of = |roots: &[&str]| {
        let own = found.iter().filter(|(path, _)| roots.iter().any(|root| path.starts_with(root)));
        own.map(|(_, gradient)| norm(gradient).powi(2)).sum::<f64>().sqrt()
    };
    for (key, roots) in [
        ("grad_norm", &[""][..]),
        ("grad_norm_projector", &["mm_projector"]),
        ("grad_norm_isolator", &["mode_isolator"]),
        ("grad_norm_language", &["language_model", "lora"]),
    ] {
        let (found, expected) = (of(roots), numbers[key].as_f64().unwrap());
        let difference = (found - expected).abs() / expected.max(1e-9);
        println!("{what} {key}: {found:.9}, {difference:.2e} apart");
        assert!(difference <= 2e-6, "{what} {key}: {found} for {expected}");
    }
    let count = numbers["tensors_with_gradient"].as_u64().unwrap() as usize;
    assert_eq!(found.values().filter(|gradient| norm(gradient) > 0.0).count(), count, "{what}");
}

#[test]
fn features_are_the_published_ones() {
    let model = full();
    let pixels = pixel_values("data/mix_pixels.safetensors", 3);
    let batch = Batch::prompt(&[1]);
    let features = batch.inputs(&model, Some(pixels)).features.unwrap();
    let projected = values(&model.mm_projector.forward(features.hidden()));
    let reference = Floats::open(&published("full/features.safetensors")).values("projected");
    assert_close("projected", &projected, &reference, 1e-5);
}

#[test]
fn full_tuning_has_the_published_losses_and_gradients() {
    let expected = json(&published("full/expected.json"));
    let floats = Floats::open(&published("full/gradients.safetensors"));
    let model = full();
    for (slow, prefix, count, tolerance) in
        [(false, "fast/", 35, PUBLISHED_FAST_GRADIENTS), (true, "slow/", 34, GRADIENTS)]
    {
        let pixels = pixel_values("data/mix_pixels.safetensors", 2);
        let found = check_mode("full", &expected, &model, pixels, slow);
        // On slow steps the teacher passes none: the isolator is not among them.
        assert_eq!(found.len(), count, "{prefix}");
        assert_eq!(check_gradients("full", &found, &floats, prefix, tolerance), count);
        check_norms(&format!("full {prefix}"), &found, &expected[prefix.trim_end_matches('/')]);
    }
}

/// Every gradient of a fast step against 64 bits: against the published numbers where those are as good.
#[test]
fn a_fast_step_is_that_in_64_bits() {
    let numbers = json(&published("fast_step.json"));
    let exact = Floats::open(&published("fast_step.safetensors"));
    let floats = Floats::open(&published("full/gradients.safetensors"));
    let all = batch(&json(&published("full/expected.json")));
    let model = full();
    let pixels = pixel_values("data/mix_pixels.safetensors", 2);
    let losses = step(&model, &all, Some(pixels), false).0;
    let loss = losses.loss(losses.tokens).unwrap();
    assert_close("loss", &values(&loss), &[numbers["loss"].as_f64().unwrap() as f32], LOSSES);
    let found = gradients(&model, "", &loss.backward());
    assert_eq!(check_gradients("fast", &found, &exact, "", GRADIENTS), 16);
    let mut rest = found.clone();
    rest.retain(|path, _| exact.keys().all(|key| path_of(key).unwrap() != *path));
    assert_eq!(rest.len(), 19);
    let others = |key: &&str| rest.contains_key(&path_of(key.trim_start_matches("fast/")).unwrap());
    let keys: Vec<&str> =
        floats.keys().filter(|key| key.starts_with("fast/")).filter(others).collect();
    assert_eq!(check_keys("fast", &rest, &floats, "fast/", &keys, GRADIENTS), 19);
    let mut norms = numbers;
    norms["tensors_with_gradient"] = 35.into();
    check_norms("fast", &found, &norms);
}

/// Accumulation: two images in one micro-batch, text only in the other, which has no teacher.
#[test]
fn a_slow_step_over_two_micro_batches_is_that_of_the_window() {
    let numbers = json(&published("slow_window.json"));
    let floats = Floats::open(&published("slow_window.safetensors"));
    let all = batch(&json(&published("full/expected.json")));
    let model = full();
    let pixels = pixel_values("data/mix_pixels.safetensors", 2);
    let parts = [
        step(&model, &all.samples(0..2), Some(pixels), true).0,
        step(&model, &all.samples(2..3), None, true).0,
    ];
    let tokens: usize = parts.iter().map(|losses| losses.tokens).sum();
    assert_eq!(tokens, 53);
    let mut sum: BTreeMap<String, Vec<f32>> = BTreeMap::new();
    let mut total = 0.0;
    for (losses, expected) in parts.iter().zip(numbers["micro_batches"].as_array().unwrap()) {
        let found = [part(losses, CROSS_ENTROPY), part(losses, DISTILLATION)];
        let number = |key: &str| expected[key].as_f64().unwrap() as f32;
        let expected_sums = [number("ce"), number("kl")];
        assert_close("sums", &found, &expected_sums, 1e-6 * expected_sums[0]);
        assert_eq!(losses.tokens as u64, expected["tokens"].as_u64().unwrap());
        let kl_tokens = losses.part(DISTILLATION).map_or(0, |part| part.tokens);
        assert_eq!(kl_tokens as u64, expected["kl_tokens"].as_u64().unwrap());
        let loss = losses.loss(tokens).unwrap();
        total += values(&loss)[0];
        for (path, gradient) in gradients(&model, "", &loss.backward()) {
            match sum.get_mut(&path) {
                Some(sum) => sum.iter_mut().zip(gradient).for_each(|(sum, part)| *sum += part),
                None => drop(sum.insert(path, gradient)),
            }
        }
    }
    assert_close("window loss", &[total], &[numbers["loss"].as_f64().unwrap() as f32], LOSSES);
    assert_eq!(check_gradients("window", &sum, &floats, "", GRADIENTS), 6);
    let mut norms = numbers.clone();
    norms["tensors_with_gradient"] = 34.into();
    check_norms("window", &sum, &norms);
    // The window is the one batch of `full`, whose other gradients are on file too.
    let floats = Floats::open(&published("full/gradients.safetensors"));
    let compared = check_gradients("window as one batch", &sum, &floats, "slow/", GRADIENTS);
    assert_eq!(compared, 34);
}

/// A directory of the published trainer's on the language model and the tower before training.
fn on_base(options: LoadOptions) -> Llava<A> {
    let tower = Some(published("layouts/tower"));
    load_llava(&published("layouts/base"), &LoadOptions { vision_tower: tower, ..options })
}

#[test]
fn adapters_have_the_published_losses_and_norms() {
    let expected = json(&published("lora/expected.json"));
    let adapter = Some(published("layouts/c-lora"));
    let model = on_base(LoadOptions { adapter, ..LoadOptions::default() });
    let lora = model.config.lora.clone().unwrap();
    assert_eq!((lora.r, lora.alpha, lora.dropout, lora.targets.len()), (8, 16.0, 0.0, 7));
    assert_eq!(model.config.isolator_length, 4);
    let model = model.with_trainable(Trainable::finetune_lora()).unwrap();
    for (slow, mode) in [(false, "fast"), (true, "slow")] {
        let pixels = pixel_values("data/mix_pixels.safetensors", 2);
        let found = check_mode("lora", &expected, &model, pixels, slow);
        check_norms(&format!("lora {mode}"), &found, &expected[mode]);
    }
}

#[test]
fn stage_one_has_the_published_losses_and_norms() {
    let parts = vec![published("layouts/b-stage1")];
    let model = on_base(LoadOptions { parts, ..LoadOptions::default() });
    let model = model.with_trainable(Trainable::pretrain()).unwrap();
    for case in ["stage1v1", "stage1plain"] {
        let expected = json(&published(case).join("expected.json"));
        let pixels = pixel_values("data/cap_pixels.safetensors", 3);
        let found = check_mode(case, &expected, &model, pixels, false);
        check_norms(case, &found, &expected["fast"]);
    }
}
