//! The whole forward: plain LLaVA, losses by hand, errors.

use burn::tensor::{Int, Tensor};
use dualspeed_model::language::DecoderOptions;
use dualspeed_model::objective::{CORRECT, CROSS_ENTROPY, DISTILLATION};
use dualspeed_model::{
    DualSpeedObjective, Forward, IGNORE_INDEX, IMAGE_TOKEN_INDEX, LayoutError, Llava, LlavaConfig,
    ModelError, PrunerSpec, Registry, View, VisionFeatures,
};

use crate::support::{
    B, Batch, assert_close, config, encode, images, inference, losses, model, sum, values,
};

/// LLaVA without any of this crate's layout: embeddings concatenated piece by piece.
fn plain_llava(model: &Llava<B>, batch: &Batch, features: &VisionFeatures<B>) -> Vec<f32> {
    let projected = model.mm_projector.forward(features.hidden());
    let device = Default::default();
    let d = model.config.text.hidden_size;
    let (mut rows, mut longest, mut sequences) = (Vec::new(), 0, Vec::new());
    let mut image = 0;
    let mut supervised = Vec::new();
    for (ids, labels) in batch.input_ids.iter().zip(&batch.labels) {
        let (mut pieces, mut length, mut wanted) = (Vec::new(), 0, Vec::new());
        for (id, label) in ids.iter().zip(labels) {
            let piece: Tensor<B, 2> = if *id == IMAGE_TOKEN_INDEX {
                image += 1;
                projected.clone().narrow(0, image - 1, 1).squeeze_dim(0)
            } else {
                model.language_model.embed(Tensor::<B, 1, Int>::from_ints([*id], &device))
            };
            if *label != IGNORE_INDEX {
                wanted.push(length - 1);
            }
            length += piece.dims()[0];
            pieces.push(piece);
        }
        longest = longest.max(length);
        supervised.push(wanted);
        sequences.push((pieces, length));
    }
    let mut padded = Vec::new();
    for (sample, (mut pieces, length)) in sequences.into_iter().enumerate() {
        if length < longest {
            pieces.push(Tensor::zeros([longest - length, d], &device));
        }
        padded.push(Tensor::cat(pieces, 0).unsqueeze::<3>());
        rows.extend(supervised[sample].iter().map(|row| sample * longest + row));
    }
    let embeds = Tensor::cat(padded, 0);
    let options = DecoderOptions { wanted: Some(&rows), ..DecoderOptions::default() };
    values(&model.language_model.forward(embeds, options))
}

#[test]
fn the_full_view_is_plain_llava_bit_for_bit() {
    let (model, batch) = (model::<B>(&config()), Batch::mixed());
    let features = encode(&model, 3);
    let inputs = batch.inputs(Some(&features));
    let plain = plain_llava(&model, &batch, &features);
    let none = Registry::<B>::builtin().build(&PrunerSpec::new("none")).unwrap();
    let nothing_pruned = View::Pruned { keep: 16, isolator: false };
    for (view, pruner) in [(View::Full, None), (nothing_pruned, Some(&*none))] {
        let forward = model.forward(&inputs, &view, pruner, &inference()).unwrap();
        assert_eq!(values(&forward.hidden), plain, "{view:?}");
        assert_eq!(forward.targets, [9, 2, 6, 2, 10, 13, 2]);
        assert_eq!(forward.supervised_per_sample, [2, 2, 3]);
        assert_eq!(forward.has_image, [true, false, true]);
        assert_eq!(forward.visual_tokens, 48);
        assert_eq!(forward.row_of(2, 6), Some(5));
        assert_eq!(forward.row_of(2, 5), None);
    }
}

#[test]
fn padding_and_batch_mates_change_nothing() {
    let mut config = config();
    let batch = Batch::mixed();
    let run = |config: &LlavaConfig| {
        let model = model::<B>(config);
        let features = encode(&model, 3);
        let inputs = batch.inputs(Some(&features));
        model.forward(&inputs, &View::Full, None, &inference()).unwrap()
    };
    let tight = run(&config);
    config.pad_to_multiple = 32;
    let padded = run(&config);
    assert_eq!((tight.seq, padded.seq), (38, 64));
    assert_close(&values(&tight.hidden), &values(&padded.hidden), 1e-5);

    let (alone, model) = (batch.samples(1..2), model::<B>(&config));
    let alone = model.forward(&alone.inputs(None), &View::Full, None, &inference()).unwrap();
    let both = values(&tight.hidden);
    assert_close(&values(&alone.hidden), &both[2 * 16..4 * 16], 1e-5);
}

#[test]
fn the_fast_view_has_fewer_tokens_and_the_isolator_matters() {
    let (model, batch) = (model::<B>(&config()), Batch::mixed());
    let features = encode(&model, 3);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let run = |isolator| {
        let view = View::Pruned { keep: 5, isolator };
        let inputs = batch.inputs(Some(&features));
        model.forward(&inputs, &view, Some(&*pruner), &inference()).unwrap()
    };
    let (with, without) = (run(true), run(false));
    assert_eq!(without.lengths, [5 + 5, 4, 6 + 2 * 5]);
    assert_eq!(with.lengths, [5 + 5 + 3, 4, 6 + 2 * (5 + 3)]);
    assert_eq!(with.visual_tokens, 15);
    assert_eq!(with.picks.as_ref().unwrap().dims(), [3, 5]);
    assert_ne!(values(&with.hidden), values(&without.hidden));
    // The text-only sample has no isolator.
    let (a, b) = (values(&with.hidden), values(&without.hidden));
    assert_close(&a[32..64], &b[32..64], 1e-5);
}

fn log_softmax(logits: &[f64]) -> Vec<f64> {
    let highest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = logits.iter().map(|x| (x - highest).exp()).sum();
    logits.iter().map(|x| x - highest - total.ln()).collect()
}

/// Log-probabilities of every row, in f64.
fn log_probabilities(model: &Llava<B>, forward: &Forward<B>, tau: f64) -> Vec<Vec<f64>> {
    let logits = forward.hidden.clone().matmul(model.lm_head_weight());
    let vocab = logits.dims()[1];
    let scaled: Vec<f64> = values(&logits).iter().map(|x| f64::from(*x) / tau).collect();
    scaled.chunks(vocab).map(log_softmax).collect()
}

/// `tau^2 KL(teacher || student)` of rows of the two that belong together.
fn divergence(p: &[f64], q: &[f64], tau: f64) -> f64 {
    p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>() * tau * tau
}

#[test]
fn losses_equal_a_computation_by_hand() {
    let (model, batch, tau) = (model::<B>(&config()), Batch::mixed(), 2.0);
    let features = encode(&model, 3);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let fast = View::Pruned { keep: 4, isolator: true };
    let run = |view: &View| {
        let inputs = batch.inputs(Some(&features));
        model.forward(&inputs, view, Some(&*pruner), &inference()).unwrap()
    };
    let (student, teacher) = (run(&View::Full), run(&fast));
    let cross_entropy = |forward: &Forward<B>| -> f64 {
        let rows = log_probabilities(&model, forward, 1.0);
        rows.iter().zip(&forward.targets).map(|(row, target)| -row[*target as usize]).sum()
    };
    let of_rows: Vec<f64> = log_probabilities(&model, &teacher, tau)
        .iter()
        .zip(&log_probabilities(&model, &student, tau))
        .map(|(p, q)| divergence(p, q, tau))
        .collect();
    // Rows 2 and 3 are of the sample without an image, whose views are one: it has no teacher.
    assert!(of_rows[2..4].iter().all(|kl| kl.abs() < 1e-9), "{of_rows:?}");
    let kl: f64 = of_rows.iter().sum();
    let objective = DualSpeedObjective { lambda: 0.5, tau };

    let fast = losses(&model, &teacher, None, objective).unwrap();
    assert_close(&[sum(&fast, CROSS_ENTROPY)], &[cross_entropy(&teacher) as f32], 1e-3);
    assert_eq!(fast.tokens, 7);
    assert!(fast.part(DISTILLATION).is_none());
    let loss = (cross_entropy(&teacher) / 7.0) as f32;
    assert_close(&values(&fast.loss(7).unwrap()), &[loss], 1e-4);

    let slow = losses(&model, &student, Some(&teacher), objective).unwrap();
    assert_close(&[sum(&slow, CROSS_ENTROPY)], &[cross_entropy(&student) as f32], 1e-3);
    assert!(kl > 1e-4, "the views are too alike to test anything: {kl}");
    assert_close(&[sum(&slow, DISTILLATION)], &[kl as f32], 1e-4);
    assert_eq!((slow.tokens, slow.part(DISTILLATION).unwrap().tokens), (7, 5));
    // One divisor for both terms, whatever number of tokens has a teacher.
    let loss = ((cross_entropy(&student) + 0.5 * kl) / 14.0) as f32;
    assert_close(&values(&slow.loss(14).unwrap()), &[loss], 1e-4);
    let best = log_probabilities(&model, &student, 1.0)
        .iter()
        .zip(&student.targets)
        .filter(|(row, target)| row.iter().all(|x| *x <= row[**target as usize]))
        .count();
    assert_eq!(sum(&slow, CORRECT), best as f32);
    assert_eq!(slow.part(CORRECT).unwrap().weight, 0.0, "is reported, not minimised");
}

#[test]
fn differently_cut_sequences_distil_on_their_common_rows() {
    let (mut config, batch) = (config(), Batch::mixed());
    let whole = model::<B>(&config);
    config.max_length = Some(20);
    let cut = model::<B>(&config);
    let features = encode(&whole, 3);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let fast = View::Pruned { keep: 2, isolator: true };
    let run = |view: &View| {
        let inputs = batch.inputs(Some(&features));
        cut.forward(&inputs, view, Some(&*pruner), &inference()).unwrap()
    };
    let (student, teacher) = (run(&View::Full), run(&fast));
    assert_eq!(student.supervised_per_sample, [1, 2, 1]);
    assert_eq!(teacher.supervised_per_sample, [2, 2, 3]);
    let slow = losses(&cut, &student, Some(&teacher), DualSpeedObjective::default()).unwrap();
    assert_eq!((slow.tokens, slow.part(DISTILLATION).unwrap().tokens), (4, 2));
    let (p, q) = (log_probabilities(&cut, &teacher, 1.0), log_probabilities(&cut, &student, 1.0));
    // The teacher's and the student's rows of samples 0 and 2; sample 1 has no image.
    let expected: f64 = [(0, 0), (4, 3)].iter().map(|(t, s)| divergence(&p[*t], &q[*s], 1.0)).sum();
    assert!(expected > 1e-4, "the views are too alike to test anything: {expected}");
    assert_close(&[sum(&slow, DISTILLATION)], &[expected as f32], 1e-4);
    let cross_entropy: f64 =
        q.iter().zip(&student.targets).map(|(row, target)| -row[*target as usize]).sum();
    assert_close(&[sum(&slow, CROSS_ENTROPY)], &[cross_entropy as f32], 1e-3);

    // The teacher of another batch is refused.
    let one = batch.samples(1..2);
    let other = cut.forward(&one.inputs(None), &View::Full, None, &inference()).unwrap();
    let error = losses(&cut, &student, Some(&other), DualSpeedObjective::default()).unwrap_err();
    assert!(matches!(error, ModelError::BatchMismatch { teacher: 1, student: 3 }), "{error}");
}

#[test]
fn impossible_requests_are_errors() {
    let (mut config, batch) = (config(), Batch::mixed());
    let model_ = model::<B>(&config);
    let features = encode(&model_, 3);
    let uniform = Registry::<B>::builtin().build(&PrunerSpec::new("uniform")).unwrap();
    let run = |features: Option<&VisionFeatures<B>>, view: View| {
        model_.forward(&batch.inputs(features), &view, None, &inference()).unwrap_err()
    };
    let fast = View::Pruned { keep: 4, isolator: true };
    assert!(matches!(run(Some(&features), fast), ModelError::NoPruner));
    let count = |placeholders, images| LayoutError::ImageCount { placeholders, images };
    let is_count = |error: ModelError, wanted: LayoutError| match error {
        ModelError::Layout(error) => assert_eq!(error, wanted),
        other => panic!("{other}"),
    };
    is_count(run(None, View::Full), count(3, 0));
    is_count(run(Some(&images(&features, 0..2)), View::Full), count(3, 2));
    let two = images(&features, 0..2);
    let error = model_.forward(&batch.inputs(Some(&two)), &fast, Some(&*uniform), &inference());
    is_count(error.unwrap_err(), count(3, 2));
    let narrow = VisionFeatures::new(features.hidden().narrow(2, 0, 8));
    assert!(matches!(
        run(Some(&narrow), View::Full),
        ModelError::FeatureShape { found, tokens: 16, hidden: 16 } if found == [3, 16, 8]
    ));
    let few = Batch { sample_ids: vec!["one".into()], ..batch.clone() };
    let error = model_.forward(&few.inputs(Some(&features)), &fast, Some(&*uniform), &inference());
    assert!(matches!(error.unwrap_err(), ModelError::SampleIds { expected: 3, found: 1 }));
    let pixels = crate::support::random::<B, 4>([1, 3, 16, 20], 1);
    let error = model_.encode(pixels, &Default::default()).unwrap_err();
    assert!(matches!(error, ModelError::ImageShape { expected: 16, .. }), "{error}");

    config.isolator_length = 0;
    let bare = model::<B>(&config);
    let error = bare.forward(&batch.inputs(Some(&features)), &fast, Some(&*uniform), &inference());
    assert!(matches!(error.unwrap_err(), ModelError::NoIsolator));
    let mute = Batch::new(vec![vec![1, 2]], vec![vec![IGNORE_INDEX; 2]]);
    let error = bare.forward(&mute.inputs(None), &View::Full, None, &inference()).unwrap_err();
    assert!(error.to_string().contains("sample-0"), "{error}");
    config.text.hidden_size = 15;
    let error = config.init::<B>(&Default::default(), 0).unwrap_err().to_string();
    assert!(error.contains("text.hidden_size = 15"), "{error}");
}
