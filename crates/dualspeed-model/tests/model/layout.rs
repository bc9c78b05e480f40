//! The layout of text and images against a naive restatement.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_core::rng::SplitMix;
use dualspeed_model::layout::{ImageSlots, LayoutOptions, PaddedBatch, lay_out};
use dualspeed_model::{IGNORE_INDEX, IMAGE_TOKEN_INDEX, LayoutError, TextBatch};

use crate::support::{B, random, values};

const VOCAB: usize = 11;
const D: usize = 4;

fn options(isolator_length: usize, max_length: Option<usize>) -> LayoutOptions {
    LayoutOptions { vocab_size: VOCAB, isolator_length, max_length, ..LayoutOptions::default() }
}

/// Images of `lengths` tokens each, in a table with `stride` rows for every image.
fn slots(lengths: &[usize], stride: usize) -> Vec<ImageSlots> {
    let image =
        |(image, length): (usize, &usize)| ImageSlots::sequential(image * stride, *length, stride);
    lengths.iter().enumerate().map(image).collect()
}

type Row = Vec<f32>;

/// One sample, laid out vector by vector: rows, and (row before, label, label position).
fn naive(
    ids: &[i64],
    labels: &[i64],
    table: &[Row],
    images: &[Vec<Row>],
    isolator: &[Row],
    max_length: usize,
) -> (Vec<Row>, Vec<(usize, i64, usize)>) {
    let mut rows: Vec<Row> = Vec::new();
    let mut row_labels: Vec<(i64, usize)> = Vec::new();
    let mut image = images.iter();
    for (position, (id, label)) in ids.iter().zip(labels).enumerate() {
        let new: Vec<Row> = if *id == IMAGE_TOKEN_INDEX {
            isolator.iter().chain(image.next().unwrap()).cloned().collect()
        } else {
            vec![table[*id as usize].clone()]
        };
        if rows.len() + new.len() > max_length {
            break;
        }
        let label = if *id == IMAGE_TOKEN_INDEX { IGNORE_INDEX } else { *label };
        row_labels.extend(new.iter().map(|_| (label, position)));
        rows.extend(new);
    }
    let supervised = (1..rows.len())
        .filter(|i| row_labels[*i].0 != IGNORE_INDEX)
        .map(|i| (i - 1, row_labels[i].0, row_labels[i].1))
        .collect();
    (rows, supervised)
}

#[test]
fn equals_the_naive_layout_on_random_mixed_batches() {
    let mut rng = SplitMix::new(&[17]);
    let mut dropped_images = 0;
    for round in 0..200 {
        let samples = 1 + rng.below(4);
        let (mut input_ids, mut labels) = (Vec::new(), Vec::new());
        for _ in 0..samples {
            let length = 1 + rng.below(9);
            let ids: Vec<i64> = (0..length)
                .map(
                    |_| if rng.below(5) == 0 { IMAGE_TOKEN_INDEX } else { rng.below(VOCAB) as i64 },
                )
                .collect();
            labels.push(
                ids.iter()
                    .map(|id| {
                        if *id == IMAGE_TOKEN_INDEX || rng.below(2) == 0 {
                            IGNORE_INDEX
                        } else {
                            *id
                        }
                    })
                    .collect::<Vec<i64>>(),
            );
            input_ids.push(ids);
        }
        let batch = TextBatch { input_ids: &input_ids, labels: &labels };
        let per_sample = batch.images_per_sample();
        let images: usize = per_sample.iter().sum();
        let (n, l, pad) = (1 + rng.below(4), rng.below(3), rng.below(6));
        let max_length = (rng.below(2) == 0).then(|| 1 + rng.below(12));
        let visual_lengths: Vec<usize> = (0..images).map(|_| 1 + rng.below(n)).collect();
        let sequences = lay_out(batch, &slots(&visual_lengths, n), options(l, max_length)).unwrap();
        let plan = PaddedBatch::new(sequences, images * n, false, pad);
        assert_eq!(plan.positions, None, "renumbered positions have no gaps");

        let table = random::<B, 2>([VOCAB, D], round);
        let visual = random::<B, 2>([(images * n).max(1), D], round + 1000);
        let isolator = random::<B, 2>([l.max(1), D], round + 2000);
        let rows =
            |x: &Tensor<B, 2>| values(x).chunks(D).map(<[f32]>::to_vec).collect::<Vec<Row>>();
        let ids = TensorData::new(plan.text_ids.clone(), [plan.text_ids.len()]);
        let text = (!plan.text_ids.is_empty()).then(|| {
            table.clone().select(0, Tensor::<B, 1, Int>::from_data(ids, &Default::default()))
        });
        let images_there = (images > 0).then(|| visual.clone());
        let isolator_there = (images > 0 && l > 0).then(|| isolator.clone());
        let parts = [text, images_there, isolator_there].into_iter().flatten().collect();
        let index = TensorData::new(plan.gather.clone(), [plan.gather.len()]);
        let index = Tensor::<B, 1, Int>::from_data(index, &Default::default());
        let laid_out = values(&Tensor::cat(parts, 0).select(0, index)); // [batch * seq, d]
        let own = rows(&visual);
        let own = own.chunks(n).zip(&visual_lengths).map(|(rows, length)| rows[..*length].to_vec());
        let host_images: Vec<Vec<Row>> = own.collect();
        let host_isolator = &rows(&isolator)[..l];
        let (mut next_image, mut expected_rows, mut expected_targets) = (0, Vec::new(), Vec::new());
        let mut visual_tokens = 0;
        for (sample, (ids, labels)) in input_ids.iter().zip(&labels).enumerate() {
            let own = &host_images[next_image.min(host_images.len())..];
            next_image += per_sample[sample];
            let (expected, supervised) = naive(
                ids,
                labels,
                &rows(&table),
                own,
                host_isolator,
                max_length.unwrap_or(usize::MAX),
            );
            assert_eq!(plan.lengths[sample], expected.len(), "round {round}");
            for (position, row) in expected.iter().enumerate() {
                let at = (sample * plan.seq + position) * D;
                assert_eq!(&laid_out[at..at + D], row.as_slice(), "round {round}");
            }
            visual_tokens += expected.len()
                - expected.iter().filter(|row| rows(&table).contains(row)).count()
                - expected.iter().filter(|row| host_isolator.contains(row)).count();
            expected_rows.extend(supervised.iter().map(|(i, ..)| sample * plan.seq + i));
            expected_targets.extend(supervised.iter().map(|(_, label, _)| *label));
            let positions: Vec<usize> = supervised.iter().map(|(.., p)| *p).collect();
            assert_eq!(plan.label_positions[sample], positions, "round {round}");
        }
        assert_eq!(plan.supervised, expected_rows);
        assert_eq!(plan.targets, expected_targets);
        assert_eq!(plan.visual_tokens, visual_tokens);
        assert!(plan.seq >= *plan.lengths.iter().max().unwrap());
        assert_eq!(plan.seq % pad.max(1), 0);
        dropped_images += usize::from(plan.visual_tokens < visual_lengths.iter().sum());
    }
    assert!(dropped_images > 10, "the cut before an image was hardly exercised");
}

#[test]
fn bad_batches_are_refused_with_their_place() {
    let img = IMAGE_TOKEN_INDEX;
    let plan = |ids: &[Vec<i64>], labels: &[Vec<i64>], images: usize| {
        let batch = TextBatch { input_ids: ids, labels };
        lay_out(batch, &slots(&vec![2; images], 2), options(0, None)).unwrap_err()
    };
    assert_eq!(plan(&[], &[], 0), LayoutError::Empty);
    assert_eq!(plan(&[vec![]], &[vec![]], 0), LayoutError::EmptySample { sample: 0 });
    assert_eq!(
        plan(&[vec![1, 2]], &[vec![1]], 0),
        LayoutError::LabelCount { sample: 0, ids: 2, labels: 1 }
    );
    assert_eq!(
        plan(&[vec![1, img]], &[vec![1, -100]], 2),
        LayoutError::ImageCount { placeholders: 1, images: 2 }
    );
    assert_eq!(
        plan(&[vec![1], vec![1, 11]], &[vec![1], vec![1, 1]], 0),
        LayoutError::TokenId { sample: 1, position: 1, id: 11, vocab: VOCAB }
    );
}
