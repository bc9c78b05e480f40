//! The sequence of each sample: where every position comes from, where it stands, and what it is supervised with.

use dualspeed_data::{IGNORE_INDEX, IMAGE_TOKEN_INDEX};

use super::image::ImageSlots;
use super::place::Position;
use super::slot::{Slot, Source};
use super::text::{LayoutError, TextBatch};

/// The sequence of one sample.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Its positions in order.
    pub slots: Vec<Slot>,
    /// The run of slots that each of its images makes, isolator not counted.
    pub images: Vec<std::ops::Range<usize>>,
    /// The rotary position of a token that would follow; not always one more than the last slot's: pruned tokens at the end count
    /// where they keep their positions.
    pub next: Position,
}

/// Which rotary positions the tokens of an image get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Positions {
    /// Counted without gaps (DualSpeed).
    #[default]
    Renumbered,
    /// Those they would have without pruning (FastV and others).
    Original,
    /// By place on three axes, pruned or not (Qwen2-VL).
    Grid,
}

/// How a batch is laid out.
#[derive(Clone, Copy, Debug, Default)]
pub struct LayoutOptions {
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Length of the isolator put before each image's visual tokens; 0 for none.
    pub isolator_length: usize,
    /// Sequences are cut here; an image that would cross the line is dropped with what follows.
    pub max_length: Option<usize>,
    /// Rotary positions of visual tokens.
    pub positions: Positions,
}

/// Lays out a batch whose `i`-th image (sample-major) is `images[i]`: one sequence per sample.
///
/// # Errors
/// [`LayoutError`] if ids, labels and images do not fit together.
pub fn lay_out(
    batch: TextBatch<'_>,
    images: &[ImageSlots],
    options: LayoutOptions,
) -> Result<Vec<Sequence>, LayoutError> {
    batch.check(options.vocab_size)?;
    let per_sample = batch.images_per_sample();
    let placeholders = per_sample.iter().sum();
    if placeholders != images.len() {
        return Err(LayoutError::ImageCount { placeholders, images: images.len() });
    }
    let mut images = images;
    let samples = batch.input_ids.iter().zip(batch.labels).zip(per_sample);
    let sequences = samples.map(|((ids, labels), count)| {
        let (own, rest) = images.split_at(count);
        images = rest;
        sequence(ids, labels, own, options)
    });
    Ok(sequences.collect())
}

fn sequence(
    ids: &[i64],
    labels: &[i64],
    images: &[ImageSlots],
    options: LayoutOptions,
) -> Sequence {
    let max_length = options.max_length.unwrap_or(usize::MAX);
    let mut sequence = Sequence::default();
    let slots = &mut sequence.slots;
    let mut images = images.iter();
    // The rotary position of the next text token.
    let mut next = 0;
    for (index, (id, label)) in ids.iter().zip(labels).enumerate() {
        if *id != IMAGE_TOKEN_INDEX {
            if slots.len() == max_length {
                break;
            }
            let (source, position) = (Source::Text(*id), Position::text(next));
            slots.push(Slot { source, position, label: *label, index });
            next += 1;
            continue;
        }
        let Some(image) = images.next() else { break };
        if slots.len() + options.isolator_length + image.tokens.len() > max_length {
            break;
        }
        let slot = |source, position| Slot { source, position, label: IGNORE_INDEX, index };
        slots.extend((0..options.isolator_length).map(|row| {
            let position = Position::text(next + row);
            slot(Source::Isolator(row), position)
        }));
        next += options.isolator_length;
        let first = slots.len();
        slots.extend(image.tokens.iter().enumerate().map(|(count, token)| {
            let position = match options.positions {
                Positions::Renumbered => Position::text(next + count),
                Positions::Original => Position::text(next + token.offset),
                Positions::Grid => Position::visual(next, token.place),
            };
            slot(token.source, position)
        }));
        sequence.images.push(first..slots.len());
        next += match options.positions {
            Positions::Renumbered => image.tokens.len(),
            Positions::Original => image.full_length,
            Positions::Grid => image.extent,
        };
    }
    sequence.next = Position::text(next);
    sequence
}
