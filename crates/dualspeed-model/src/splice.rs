//! Splicing visual tokens into text: a plan made on the host, then one concat and one select.

use burn::tensor::{Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use crate::config::PositionPolicy;

/// The id that stands for one image in `input_ids`.
pub const IMAGE_TOKEN_INDEX: i64 = -200;
/// The label of positions without a loss.
pub const IGNORE_INDEX: i64 = -100;

/// Token ids and labels of a batch, borrowed from the host batch.
#[derive(Clone, Copy, Debug)]
pub struct TextBatch<'a> {
    /// Per sample, with [`IMAGE_TOKEN_INDEX`] once per image.
    pub input_ids: &'a [Vec<i64>],
    /// Per sample, same lengths; [`IGNORE_INDEX`] where there is no loss.
    pub labels: &'a [Vec<i64>],
}

impl TextBatch<'_> {
    /// Image placeholders per sample.
    pub fn images_per_sample(&self) -> Vec<usize> {
        let count = |ids: &Vec<i64>| ids.iter().filter(|id| **id == IMAGE_TOKEN_INDEX).count();
        self.input_ids.iter().map(count).collect()
    }
}

/// Text and images that do not fit together.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpliceError {
    /// A batch without samples.
    #[error("the batch is empty")]
    Empty,
    /// A sample without tokens.
    #[error("sample {sample} of the batch has no tokens")]
    EmptySample {
        /// Index in the batch.
        sample: usize,
    },
    /// A sample whose labels do not line up with its ids.
    #[error("sample {sample} of the batch has {ids} token ids but {labels} labels")]
    LabelCount {
        /// Index in the batch.
        sample: usize,
        /// Token ids.
        ids: usize,
        /// Labels.
        labels: usize,
    },
    /// Placeholders and images disagree.
    #[error("the batch has {placeholders} image placeholder(s) but {images} image(s)")]
    ImageCount {
        /// Placeholders in `input_ids`.
        placeholders: usize,
        /// Images with visual tokens.
        images: usize,
    },
    /// An id outside the vocabulary.
    #[error(
        "token id {id} at position {position} of sample {sample} is outside the vocabulary of \
         {vocab}; was the text made with another tokenizer?"
    )]
    TokenId {
        /// Index in the batch.
        sample: usize,
        /// Index in `input_ids`.
        position: usize,
        /// The id.
        id: i64,
        /// Size of the vocabulary.
        vocab: usize,
    },
}

/// How a batch is spliced.
#[derive(Clone, Copy, Debug)]
pub struct SpliceOptions {
    /// Size of the vocabulary.
    pub vocab_size: usize,
    /// Length of the isolator put before each image's visual tokens; 0 for none.
    pub isolator_length: usize,
    /// Sequence lengths are padded to a multiple of this (0 and 1: to the longest only).
    pub pad_to_multiple: usize,
    /// Sequences are cut here; an image that would cross the line is dropped with what follows.
    pub max_length: Option<usize>,
}

/// The visual tokens of one image in the order in which they are spliced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageRows {
    /// Their rows in the visual table.
    pub rows: Vec<usize>,
    /// Where each would stand in the image without pruning.
    pub places: Vec<usize>,
    /// Tokens of the image without pruning.
    pub full: usize,
}

impl ImageRows {
    /// `length` rows from `start` on, none pruned.
    pub fn consecutive(start: usize, length: usize) -> Self {
        Self {
            rows: (start..start + length).collect(),
            places: (0..length).collect(),
            full: length,
        }
    }
}

/// Where every position of the spliced batch comes from, and which rows are supervised.
///
/// The source table is `[text tokens; visual tokens of all images; isolator]`, all on one axis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SplicePlan {
    /// Ids of the text tokens that are used, sample-major.
    pub text_ids: Vec<i64>,
    /// Row of the source table for each of `batch * seq` positions; padding points at row 0.
    pub gather: Vec<i64>,
    /// Length of each sequence without padding.
    pub lengths: Vec<usize>,
    /// Rotary position of each of `batch * seq` positions, where they are not counted without gaps.
    pub positions: Option<Vec<usize>>,
    /// Padded length.
    pub seq: usize,
    /// Supervised rows of the flattened `[batch * seq]`: position `i - 1` of every label at `i`.
    pub rows: Vec<usize>,
    /// Label of each supervised row.
    pub targets: Vec<i64>,
    /// Per sample, index in `input_ids` of the label of each supervised row, ascending.
    pub label_positions: Vec<Vec<usize>>,
    /// Visual tokens (isolator not counted) that made it into the batch.
    pub visual_tokens: usize,
    /// Per sample the positions of each image's visual tokens.
    pub visual_runs: Vec<Vec<std::ops::Range<usize>>>,
}

impl SplicePlan {
    /// Plans a batch whose `i`-th image (sample-major) has `visual_lengths[i]` visual tokens, in a
    /// visual tensor that holds `stride` rows per image.
    ///
    /// # Errors
    /// [`SpliceError`] if ids, labels and images do not fit together.
    pub fn new(
        batch: TextBatch<'_>,
        visual_lengths: &[usize],
        stride: usize,
        options: SpliceOptions,
    ) -> Result<Self, SpliceError> {
        let starts = (0..visual_lengths.len()).map(|image| image * stride);
        let images: Vec<_> = starts
            .zip(visual_lengths)
            .map(|(start, length)| ImageRows::consecutive(start, *length))
            .collect();
        let table = images.len() * stride;
        Self::with_rows(batch, &images, table, PositionPolicy::Renumbered, options)
    }

    /// Plans a batch whose `i`-th image (sample-major) is made of `images[i]`, rows of a visual tensor of `table` rows.
    ///
    /// # Errors
    /// [`SpliceError`] if ids, labels and images do not fit together.
    pub fn with_rows(
        batch: TextBatch<'_>,
        images: &[ImageRows],
        table: usize,
        positions: PositionPolicy,
        options: SpliceOptions,
    ) -> Result<Self, SpliceError> {
        let placeholders = check(batch, options.vocab_size)?;
        if placeholders != images.len() {
            return Err(SpliceError::ImageCount { placeholders, images: images.len() });
        }
        let max_length = options.max_length.unwrap_or(usize::MAX);
        let mut plan = Self {
            text_ids: Vec::new(),
            gather: Vec::new(),
            lengths: Vec::with_capacity(batch.input_ids.len()),
            positions: None,
            seq: 0,
            rows: Vec::new(),
            targets: Vec::new(),
            label_positions: Vec::with_capacity(batch.input_ids.len()),
            visual_tokens: 0,
            visual_runs: Vec::with_capacity(batch.input_ids.len()),
        };
        let mut sequences = Vec::with_capacity(batch.input_ids.len());
        let mut supervised = Vec::with_capacity(batch.input_ids.len());
        let mut places: Vec<Vec<usize>> = Vec::with_capacity(batch.input_ids.len());
        let mut next_image = 0;
        for (ids, labels) in batch.input_ids.iter().zip(batch.labels) {
            let mut sequence = Vec::new();
            let mut losses = Vec::new();
            let mut runs = Vec::new();
            // Rotary position of each entry of the sequence, and of the next one.
            let (mut place, mut next_place) = (Vec::new(), 0);
            let mut image = next_image;
            for (position, (id, label)) in ids.iter().zip(labels).enumerate() {
                if *id == IMAGE_TOKEN_INDEX {
                    let rows = &images[image];
                    let visual = rows.rows.len();
                    if sequence.len() + options.isolator_length + visual > max_length {
                        break;
                    }
                    sequence.extend((0..options.isolator_length).map(Source::Isolator));
                    runs.push(sequence.len()..sequence.len() + visual);
                    sequence.extend(rows.rows.iter().copied().map(Source::Visual));
                    place.extend(next_place..next_place + options.isolator_length);
                    next_place += options.isolator_length;
                    place.extend(rows.places.iter().map(|within| next_place + within));
                    next_place += rows.full;
                    plan.visual_tokens += visual;
                    image += 1;
                } else {
                    if sequence.len() == max_length {
                        break;
                    }
                    // The first position has nothing before it to be predicted from.
                    if *label != IGNORE_INDEX && !sequence.is_empty() {
                        losses.push((sequence.len() - 1, *label, position));
                    }
                    sequence.push(Source::Text(plan.text_ids.len()));
                    place.push(next_place);
                    next_place += 1;
                    plan.text_ids.push(*id);
                }
            }
            next_image += ids.iter().filter(|id| **id == IMAGE_TOKEN_INDEX).count();
            plan.lengths.push(sequence.len());
            sequences.push(sequence);
            supervised.push(losses);
            plan.visual_runs.push(runs);
            places.push(place);
        }
        let longest = plan.lengths.iter().copied().max().unwrap_or(0);
        plan.seq = longest.next_multiple_of(options.pad_to_multiple.max(1));
        let visual_start = plan.text_ids.len();
        let isolator_start = visual_start + table;
        if positions == PositionPolicy::Original {
            let seq = plan.seq;
            let padded = places.into_iter().flat_map(|mut place| {
                place.resize(seq, 0);
                place
            });
            plan.positions = Some(padded.collect());
        }
        for (sample, (sequence, losses)) in sequences.iter().zip(&supervised).enumerate() {
            plan.gather.extend(sequence.iter().map(|source| match source {
                Source::Text(row) => *row as i64,
                Source::Visual(row) => (visual_start + row) as i64,
                Source::Isolator(row) => (isolator_start + row) as i64,
            }));
            plan.gather.resize((sample + 1) * plan.seq, 0);
            plan.rows.extend(losses.iter().map(|(before, ..)| sample * plan.seq + before));
            plan.targets.extend(losses.iter().map(|(_, label, _)| *label));
            plan.label_positions.push(losses.iter().map(|(.., position)| *position).collect());
        }
        Ok(plan)
    }

    /// Builds the spliced embeddings: `[text, d], [images * stride, d], [l, d] -> [b, seq, d]`.
    pub fn assemble<B: Backend>(
        &self,
        text: Option<Tensor<B, 2>>,
        visual: Option<Tensor<B, 2>>,
        isolator: Option<Tensor<B, 2>>,
    ) -> Option<Tensor<B, 3>> {
        let mut parts: Vec<_> = [text, visual, isolator].into_iter().flatten().collect();
        let table = if parts.len() > 1 { Tensor::cat(parts, 0) } else { parts.pop()? };
        let [_, d] = table.dims();
        let index = TensorData::new(self.gather.clone(), [self.gather.len()]);
        let index = Tensor::<B, 1, Int>::from_data(index, &table.device());
        let rows = dualspeed_ops::select_rows(table, index);
        Some(rows.reshape([self.lengths.len(), self.seq, d]))
    }

    /// The last real row of each sequence in the flattened `[batch * seq]`.
    pub fn last_rows(&self) -> Vec<usize> {
        let last = |(sample, length): (usize, &usize)| sample * self.seq + length.saturating_sub(1);
        self.lengths.iter().enumerate().map(last).collect()
    }
}

/// One position's origin, before the sizes of the source table's parts are known.
enum Source {
    Text(usize),
    Visual(usize),
    Isolator(usize),
}

/// Checks lengths and ids; returns the number of placeholders.
fn check(batch: TextBatch<'_>, vocab: usize) -> Result<usize, SpliceError> {
    if batch.input_ids.is_empty() {
        return Err(SpliceError::Empty);
    }
    if batch.input_ids.len() != batch.labels.len() {
        let (ids, labels) = (batch.input_ids.len(), batch.labels.len());
        return Err(SpliceError::LabelCount { sample: ids.min(labels), ids, labels });
    }
    let mut placeholders = 0;
    for (sample, (ids, labels)) in batch.input_ids.iter().zip(batch.labels).enumerate() {
        if ids.is_empty() {
            return Err(SpliceError::EmptySample { sample });
        }
        if ids.len() != labels.len() {
            let (ids, labels) = (ids.len(), labels.len());
            return Err(SpliceError::LabelCount { sample, ids, labels });
        }
        for (position, (id, label)) in ids.iter().zip(labels).enumerate() {
            placeholders += usize::from(*id == IMAGE_TOKEN_INDEX);
            for (value, special) in [(*id, IMAGE_TOKEN_INDEX), (*label, IGNORE_INDEX)] {
                if value != special && !(0..vocab as i64).contains(&value) {
                    return Err(SpliceError::TokenId { sample, position, id: value, vocab });
                }
            }
        }
    }
    Ok(placeholders)
}
