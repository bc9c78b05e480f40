//! The second extension point: dropping visual tokens between decoder blocks.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use dualspeed_ops::Backend;

use super::topk::ranks;
use crate::layout::PaddedBatch;

/// What ranks an image's tokens when some are dropped; the lowest go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropScore {
    /// Attention of the last token of the instruction, mean over heads, by the next block's weights.
    InstructionAttention,
    /// The distance from evenly spaced places: a control.
    Uniform,
}

/// Rotary positions after a drop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DropPositions {
    /// Every token keeps the position it had.
    #[default]
    Original,
    /// Tokens move up.
    Renumbered,
}

/// A schedule of drops, backend-free: the decoder carries it out, in training and in inference.
pub trait LayerDrop: Debug + Send + Sync {
    /// How many of an image's `visual` tokens are left for the blocks after block `layer` (from 0) of
    /// `layers`; `None` where nothing is dropped. Never more than an earlier answer.
    fn keep_after(&self, layer: usize, layers: usize, visual: usize) -> Option<usize>;

    /// What ranks the tokens.
    fn score(&self) -> DropScore {
        DropScore::InstructionAttention
    }

    /// What becomes of the positions.
    fn positions(&self) -> DropPositions {
        DropPositions::Original
    }
}

/// Where a padded batch has visual tokens, on the host; changes as tokens are dropped.
#[derive(Clone, Debug)]
pub struct DropPlan {
    pub(crate) schedule: Arc<dyn LayerDrop>,
    /// Per sample and image: its run of visual positions, and how many there were at first.
    runs: Vec<Vec<(Range<usize>, usize)>>,
    lengths: Vec<usize>,
    /// Per sample the last position of the instruction.
    instruction: Vec<usize>,
}

/// The batch after a drop.
pub(crate) struct Dropped<B: Backend> {
    /// Position in the batch before, `[b, new seq]`.
    pub index: Tensor<B, 2, Int>,
    pub seq: usize,
    /// Wanted rows of the flattened `[b * new seq]`.
    pub wanted: Option<Vec<usize>>,
}

impl<B: Backend> Dropped<B> {
    /// Rows of the flattened `[b * seq]` that stay: `[b * seq, d] -> [b * new seq, d]`.
    pub fn select(&self, x: Tensor<B, 2>, seq: usize) -> Tensor<B, 2> {
        let b = self.index.dims()[0];
        let starts: Vec<i64> = (0..b).map(|sample| (sample * seq) as i64).collect();
        let starts = TensorData::new(starts, [b, 1]);
        let starts = Tensor::<B, 2, Int>::from_data(starts, &x.device());
        x.select(0, (self.index.clone() + starts).reshape([b * self.seq]))
    }

    /// The same of a table with one row per position: `[1 or b, seq, d] -> [b, new seq, d]`.
    pub fn select_each(&self, table: Tensor<B, 3>) -> Tensor<B, 3> {
        let ([_, seq, d], b) = (table.dims(), self.index.dims()[0]);
        let rows = table.expand([b, seq, d]).reshape([b * seq, d]);
        self.select(rows, seq).reshape([b, self.seq, d])
    }

    /// Rows of the flattened `[b * seq]` at the first `new seq` positions of each sample.
    pub fn leading_rows(&self, seq: usize) -> Vec<usize> {
        let b = self.index.dims()[0];
        (0..b).flat_map(|sample| (0..self.seq).map(move |at| sample * seq + at)).collect()
    }
}

impl DropPlan {
    /// Whether tokens keep their rotary positions.
    pub(crate) fn keeps_positions(&self) -> bool {
        self.schedule.positions() == DropPositions::Original
    }

    /// Plans the drops of a batch as it was laid out.
    pub fn new(schedule: Arc<dyn LayerDrop>, batch: &PaddedBatch) -> Self {
        let mut starts = vec![None; batch.samples()];
        for row in &batch.supervised {
            starts[row / batch.seq.max(1)].get_or_insert(row % batch.seq.max(1));
        }
        let last = |(length, start): (&usize, Option<usize>)| start.unwrap_or(length.max(&1) - 1);
        Self {
            schedule,
            runs: batch
                .visual_runs
                .iter()
                .map(|runs| runs.iter().map(|run| (run.clone(), run.len())).collect())
                .collect(),
            lengths: batch.lengths.clone(),
            instruction: batch.lengths.iter().zip(starts).map(last).collect(),
        }
    }

    /// Position of each sample's last instruction token.
    pub(crate) fn instruction(&self) -> &[usize] {
        &self.instruction
    }

    /// Drops after block `layer`: `scores(self)` gives `[b, seq]`, of which visual positions count;
    /// `wanted` are rows of the flattened `[b * seq]`. `None` where nothing is dropped.
    pub(crate) fn drop_after<B: Backend>(
        &mut self,
        (layer, layers): (usize, usize),
        seq: usize,
        wanted: Option<&[usize]>,
        device: &B::Device,
        scores: impl FnOnce(&Self) -> Tensor<B, 2>,
    ) -> Option<Dropped<B>> {
        // Per sample and image: the run, and how many of it stay.
        let keep: Vec<Vec<(Range<usize>, usize)>> = self
            .runs
            .iter()
            .map(|runs| {
                let left = |(run, first): &(Range<usize>, usize)| {
                    let left = self.schedule.keep_after(layer, layers, *first);
                    (
                        run.clone(),
                        left.unwrap_or(run.len()).clamp(1, run.len().max(1)).min(run.len()),
                    )
                };
                runs.iter().map(left).collect()
            })
            .collect();
        if keep.iter().flatten().all(|(run, left)| *left == run.len()) {
            return None;
        }
        let b = keep.len();
        let scores = scores(self);
        // Positions that stay anyway, and rank by rank the best of each run.
        let mut stays = vec![0f32; b * seq];
        for (sample, runs) in keep.iter().enumerate() {
            let row = &mut stays[sample * seq..(sample + 1) * seq];
            row[..self.lengths[sample]].fill(1.0);
            runs.iter().for_each(|(run, _)| row[run.clone()].fill(0.0));
        }
        let mut stays = Tensor::<B, 2>::from_data(TensorData::new(stays, [b, seq]), device);
        let most = keep.iter().map(Vec::len).max().unwrap_or(0);
        for image in 0..most {
            let run = |sample: usize| keep[sample].get(image).cloned().unwrap_or((0..0, 0));
            let inside: Vec<f32> = (0..b)
                .flat_map(|sample| {
                    let (run, _) = run(sample);
                    (0..seq).map(move |at| if run.contains(&at) { 1.0 } else { 0.0 })
                })
                .collect();
            let inside = Tensor::<B, 2>::from_data(TensorData::new(inside, [b, seq]), device);
            let outside = inside.clone().lower_elem(0.5);
            let quota: Vec<i64> = (0..b).map(|sample| run(sample).1 as i64).collect();
            let quota = Tensor::<B, 2, Int>::from_data(TensorData::new(quota, [b, 1]), device);
            let rank = ranks(scores.clone().mask_fill(outside, f32::MIN));
            stays = stays + rank.lower(quota.expand([b, seq])).float() * inside;
        }
        let new_seq = self.shrink(&keep);
        // The new place of what stays is the number of those before it.
        let place = stays.clone().cumsum(1).sub_scalar(1.0).clamp_min(0.0).int();
        let old = Tensor::<B, 1, Int>::arange(0..seq as i64, device).unsqueeze::<2>();
        let old = old.expand([b, seq]) * stays.int();
        let index = old.zeros_like().scatter(1, place, old, IndexingUpdateOp::Add);
        let index = index.narrow(1, 0, new_seq);
        let wanted =
            wanted.map(|rows| rows.iter().map(|row| moved(&keep, seq, new_seq, *row)).collect());
        Some(Dropped { index, seq: new_seq, wanted })
    }

    /// Takes over new lengths; returns the padded one.
    fn shrink(&mut self, keep: &[Vec<(Range<usize>, usize)>]) -> usize {
        for (sample, runs) in keep.iter().enumerate() {
            let mut dropped = 0;
            let last = self.instruction[sample] + 1;
            let before = |at: usize| dropped_before(runs, at);
            self.instruction[sample] = (last - before(last)).saturating_sub(1);
            for ((run, _), (_, left)) in self.runs[sample].iter_mut().zip(runs) {
                let start = run.start - dropped;
                dropped += run.len() - left;
                *run = start..start + left;
            }
            self.lengths[sample] -= dropped;
        }
        self.lengths.iter().copied().max().unwrap_or(0)
    }
}

/// Visual tokens dropped before a position that is not inside a run.
fn dropped_before(runs: &[(Range<usize>, usize)], at: usize) -> usize {
    runs.iter().filter(|(run, _)| run.end <= at).map(|(run, left)| run.len() - left).sum()
}

/// Where a wanted row is after a drop: the row before the position it predicts.
fn moved(keep: &[Vec<(Range<usize>, usize)>], seq: usize, new_seq: usize, row: usize) -> usize {
    let (sample, next) = (row / seq, row % seq + 1);
    let new = next - dropped_before(&keep[sample], next);
    sample * new_seq + new.saturating_sub(1)
}

/// Higher is nearer to evenly spaced places within each run, `[b, seq]`.
pub(crate) fn uniform_scores<B: Backend>(
    plan: &DropPlan,
    layer: usize,
    layers: usize,
    seq: usize,
    device: &B::Device,
) -> Tensor<B, 2> {
    let b = plan.runs.len();
    let mut picks: Vec<i64> = Vec::new();
    for runs in &plan.runs {
        let mut row = vec![0i64; seq];
        for (run, first) in runs {
            let keep = plan.schedule.keep_after(layer, layers, *first).unwrap_or(run.len());
            for i in 0..keep.min(run.len()) {
                row[run.start + (2 * i + 1) * run.len() / (2 * keep.max(1))] = 1;
            }
        }
        picks.extend(row);
    }
    Tensor::<B, 2, Int>::from_data(TensorData::new(picks, [b, seq]), device).float()
}
