//! Sequences side by side: padded on the right to one length, with the rows that are supervised.

use std::ops::Range;

use dualspeed_data::IGNORE_INDEX;

use super::place::Position;
use super::sequence::Sequence;
use super::slot::Source;

/// A batch of sequences, padded.
///
/// Positions are gathered from one table, `[text tokens; visual tokens; newline; isolator]`, all on one axis.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PaddedBatch {
    /// Ids of the text tokens that are used, sample-major.
    pub text_ids: Vec<i64>,
    /// Row of the table for each of `batch * seq` positions; padding points at row 0.
    pub gather: Vec<i64>,
    /// Length of each sequence without padding.
    pub lengths: Vec<usize>,
    /// Rotary position of each of `batch * seq` positions; `None` where every sequence counts from 0 without gaps.
    pub positions: Option<Vec<Position>>,
    /// Rotary position of a token that would follow each sequence.
    pub next_positions: Vec<Position>,
    /// Padded length.
    pub seq: usize,
    /// Supervised rows of the flattened `[batch * seq]`: position `i - 1` of every label at `i`.
    pub supervised: Vec<usize>,
    /// Label of each supervised row.
    pub targets: Vec<i64>,
    /// Per sample, index in `input_ids` of the label of each supervised row, ascending.
    pub label_positions: Vec<Vec<usize>>,
    /// Visual tokens that made it into the batch, newlines included, isolators not.
    pub visual_tokens: usize,
    /// Per sample the positions of each image's visual tokens.
    pub visual_runs: Vec<Vec<Range<usize>>>,
}

impl PaddedBatch {
    /// Pads to the longest sequence, rounded up to a multiple of `multiple` (0 and 1: not rounded). The table of visual tokens
    /// has `visual_rows` rows; `newline` says whether one more row, the newline, follows them.
    pub fn new(
        sequences: Vec<Sequence>,
        visual_rows: usize,
        newline: bool,
        multiple: usize,
    ) -> Self {
        let lengths: Vec<usize> = sequences.iter().map(|sequence| sequence.slots.len()).collect();
        let seq = lengths.iter().copied().max().unwrap_or(0).next_multiple_of(multiple.max(1));
        let mut batch = Self { lengths, seq, ..Self::default() };
        let slots = || sequences.iter().flat_map(|sequence| &sequence.slots);
        let text = slots().filter_map(|slot| match slot.source {
            Source::Text(id) => Some(id),
            _ => None,
        });
        batch.text_ids = text.collect();
        let first_visual = batch.text_ids.len();
        let newline_row = first_visual + visual_rows;
        let first_isolator = newline_row + usize::from(newline);
        let mut next_text = 0;
        let counted = sequences.iter().all(|sequence| {
            let positions = sequence.slots.iter().map(|slot| slot.position);
            let mut positions = positions.chain([sequence.next]).enumerate();
            positions.all(|(at, position)| position == Position::text(at))
        });
        batch.next_positions = sequences.iter().map(|sequence| sequence.next).collect();
        let mut positions = Vec::new();
        for (sample, sequence) in sequences.into_iter().enumerate() {
            let mut label_positions = Vec::new();
            for (at, slot) in sequence.slots.iter().enumerate() {
                batch.gather.push(match slot.source {
                    Source::Text(_) => {
                        next_text += 1;
                        next_text - 1
                    }
                    Source::Visual(row) => first_visual + row,
                    Source::Newline => newline_row,
                    Source::Isolator(row) => first_isolator + row,
                } as i64);
                // The first position has nothing before it to be predicted from.
                if slot.label != IGNORE_INDEX && at > 0 {
                    batch.supervised.push(sample * seq + at - 1);
                    batch.targets.push(slot.label);
                    label_positions.push(slot.index);
                }
            }
            batch.gather.resize((sample + 1) * seq, 0);
            positions.extend(sequence.slots.iter().map(|slot| slot.position));
            positions.resize((sample + 1) * seq, Position::default());
            batch.label_positions.push(label_positions);
            batch.visual_tokens += sequence.images.iter().map(Range::len).sum::<usize>();
            batch.visual_runs.push(sequence.images);
        }
        batch.positions = (!counted).then_some(positions);
        batch
    }

    /// Samples in the batch.
    pub fn samples(&self) -> usize {
        self.lengths.len()
    }

    /// The last real row of each sequence in the flattened `[batch * seq]`.
    pub fn last_rows(&self) -> Vec<usize> {
        let last = |(sample, length): (usize, &usize)| sample * self.seq + length.saturating_sub(1);
        self.lengths.iter().enumerate().map(last).collect()
    }
}
