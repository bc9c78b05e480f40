//! The whole forward: plain LLaVA, losses by hand, errors.

use burn::tensor::{Int, Tensor};
use dualspeed_model::llama::LlamaOptions;
use dualspeed_model::{
    Forward, IGNORE_INDEX, IMAGE_TOKEN_INDEX, Llava, ModelError, PrunerSpec, Registry, View,
    VisualTokens, fast_loss, slow_loss,
};

use crate::support::{B, Batch, assert_close, config, encode, model, values};

/// LLaVA without any of this crate's splicing: embeddings concatenated piece by piece.
fn plain_llava(model: &Llava<B>, batch: &Batch, visual: &VisualTokens<B>) -> Vec<f32> {
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
                visual.projected.clone().narrow(0, image - 1, 1).squeeze_dim(0)
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
    let options = LlamaOptions { rows: Some(&rows), ..LlamaOptions::default() };
    values(&model.language_model.forward(embeds, options))
}

#[test]
fn the_full_view_is_plain_llava_bit_for_bit() {
    let (model, batch) = (model::<B>(&config()), Batch::mixed());
    let visual = encode(&model, 3);
    let plain = plain_llava(&model, &batch, &visual);
    let none = Registry::<B>::builtin().build(&PrunerSpec::new("none")).unwrap();
    let nothing_pruned = View::Pruned { keep: visual.tokens(), isolator: false };
    for (view, pruner) in [(View::Full, None), (nothing_pruned, Some(&*none))] {
        let forward =
            model.forward(batch.text(), Some(&visual), &view, pruner, &batch.ctx()).unwrap();
        assert_eq!(values(&forward.hidden), plain, "{view:?}");
        assert_eq!(forward.targets, [9, 2, 6, 2, 10, 13, 2]);
        assert_eq!(forward.rows_per_sample, [2, 2, 3]);
        assert_eq!(forward.visual_tokens, 48);
        assert_eq!(forward.row_of(2, 6), Some(5));
        assert_eq!(forward.row_of(2, 5), None);
    }
}

#[test]
fn padding_and_batch_mates_change_nothing() {
    let mut config = config();
    let batch = Batch::mixed();
    let run = |config: &dualspeed_model::LlavaConfig| {
        let model = model::<B>(config);
        let visual = encode(&model, 3);
        model.forward(batch.text(), Some(&visual), &View::Full, None, &batch.ctx()).unwrap()
    };
    let tight = run(&config);
    config.pad_to_multiple = 32;
    let padded = run(&config);
    assert_eq!((tight.seq, padded.seq), (38, 64));
    assert_close(&values(&tight.hidden), &values(&padded.hidden), 1e-5);

    let alone = Batch {
        input_ids: vec![batch.input_ids[1].clone()],
        labels: vec![batch.labels[1].clone()],
    };
    let model = model::<B>(&config);
    let alone = model.forward(alone.text(), None, &View::Full, None, &alone.ctx()).unwrap();
    let both = values(&tight.hidden);
    assert_close(&values(&alone.hidden), &both[2 * 16..4 * 16], 1e-5);
}

#[test]
fn the_fast_view_has_fewer_tokens_and_the_isolator_matters() {
    let (model, batch) = (model::<B>(&config()), Batch::mixed());
    let visual = encode(&model, 3);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let run = |isolator| {
        let view = View::Pruned { keep: 5, isolator };
        model.forward(batch.text(), Some(&visual), &view, Some(&*pruner), &batch.ctx()).unwrap()
    };
    let (with, without) = (run(true), run(false));
    assert_eq!(without.lengths, [5 + 5, 4, 6 + 2 * 5]);
    assert_eq!(with.lengths, [5 + 5 + 3, 4, 6 + 2 * (5 + 3)]);
    assert_eq!(with.visual_tokens, 15);
    assert_eq!(with.kept.as_ref().unwrap().dims(), [3, 5]);
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

#[test]
fn losses_equal_a_computation_by_hand() {
    let (model, batch, tau) = (model::<B>(&config()), Batch::mixed(), 2.0);
    let visual = encode(&model, 3);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let fast = View::Pruned { keep: 4, isolator: true };
    let run = |view: &View| {
        model.forward(batch.text(), Some(&visual), view, Some(&*pruner), &batch.ctx()).unwrap()
    };
    let (student, teacher) = (run(&View::Full), run(&fast));
    let cross_entropy = |forward: &Forward<B>| -> f64 {
        let rows = log_probabilities(&model, forward, 1.0);
        rows.iter().zip(&forward.targets).map(|(row, target)| -row[*target as usize]).sum()
    };
    let kl: f64 = log_probabilities(&model, &teacher, tau)
        .iter()
        .zip(&log_probabilities(&model, &student, tau))
        .map(|(p, q)| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>() * tau * tau)
        .sum();
    let sums = fast_loss(&model, &teacher);
    assert_close(&values(&sums.ce), &[cross_entropy(&teacher) as f32], 1e-3);
    assert_eq!((sums.tokens, sums.kl_tokens), (7, 0));
    let sums = slow_loss(&model, &student, &teacher, tau).unwrap();
    assert_close(&values(&sums.ce), &[cross_entropy(&student) as f32], 1e-3);
    assert!(kl > 1e-4, "the views are too alike to test anything: {kl}");
    assert_close(&values(sums.kl.as_ref().unwrap()), &[kl as f32], 1e-4);
    let loss = (cross_entropy(&student) / 14.0 + 0.5 * kl / 14.0) as f32;
    assert_close(&values(&sums.loss(14, 14, 0.5)), &[loss], 1e-4);
    let best = log_probabilities(&model, &student, 1.0)
        .iter()
        .zip(&student.targets)
        .filter(|(row, target)| row.iter().all(|x| *x <= row[**target as usize]))
        .count();
    assert_eq!(values(&sums.correct), [best as f32]);
}

#[test]
fn differently_cut_sequences_distil_on_their_common_rows() {
    let (mut config, batch) = (config(), Batch::mixed());
    let whole = model::<B>(&config);
    config.max_length = Some(20);
    let cut = model::<B>(&config);
    let visual = encode(&whole, 3);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("divprune")).unwrap();
    let fast = View::Pruned { keep: 2, isolator: true };
    let run = |view: &View| {
        cut.forward(batch.text(), Some(&visual), view, Some(&*pruner), &batch.ctx()).unwrap()
    };
    let (student, teacher) = (run(&View::Full), run(&fast));
    assert_eq!(student.rows_per_sample, [1, 2, 1]);
    assert_eq!(teacher.rows_per_sample, [2, 2, 3]);
    let sums = slow_loss(&cut, &student, &teacher, 1.0).unwrap();
    assert_eq!((sums.tokens, sums.kl_tokens), (4, 4));
    let (p, q) = (log_probabilities(&cut, &teacher, 1.0), log_probabilities(&cut, &student, 1.0));
    let kl = |p: &[f64], q: &[f64]| p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>();
    let expected: f64 =
        [(0, 0), (2, 1), (3, 2), (4, 3)].iter().map(|(t, s)| kl(&p[*t], &q[*s])).sum();
    assert_close(&values(sums.kl.as_ref().unwrap()), &[expected as f32], 1e-4);
}

#[test]
fn impossible_requests_are_errors() {
    let (mut config, batch) = (config(), Batch::mixed());
    let model_ = model::<B>(&config);
    let visual = encode(&model_, 3);
    let run = |visual: Option<&VisualTokens<B>>, view: View| {
        model_.forward(batch.text(), visual, &view, None, &batch.ctx()).unwrap_err()
    };
    let fast = View::Pruned { keep: 4, isolator: true };
    assert!(matches!(run(Some(&visual), fast), ModelError::NoPruner));
    assert!(matches!(run(None, View::Full), ModelError::Splice(_)));
    config.isolator_length = 0;
    let bare = model::<B>(&config);
    let pruner = Registry::<B>::builtin().build(&PrunerSpec::new("uniform")).unwrap();
    let error =
        bare.forward(batch.text(), Some(&visual), &fast, Some(&*pruner), &batch.ctx()).unwrap_err();
    assert!(matches!(error, ModelError::NoIsolator));
    let mute = Batch { input_ids: vec![vec![1, 2]], labels: vec![vec![IGNORE_INDEX; 2]] };
    let error = bare.forward(mute.text(), None, &View::Full, None, &mute.ctx()).unwrap_err();
    assert!(error.to_string().contains("sample-0"), "{error}");
    config.text.hidden_size = 15;
    let error = config.init::<B>(&Default::default(), 0).unwrap_err().to_string();
    assert!(error.contains("text.hidden_size = 15"), "{error}");
}
