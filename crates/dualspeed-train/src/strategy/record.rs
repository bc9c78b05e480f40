//! What a step reports: the numbers that are read back, and the record made of them.

use std::collections::BTreeMap;

use burn::tensor::{DType, Tensor};
use dualspeed_model::objective::{CORRECT, CROSS_ENTROPY, DISTILLATION};
use dualspeed_ops::{AutodiffBackend, Backend, ReadLater};

use super::DualSpeedStrategy;
use crate::error::TrainError;
use crate::metrics::{SkippedStep, StepRecord, StepTime, TimeSplit, Totals};
use crate::mode::Mode;
use crate::optim::Updated;
use crate::step::MicroOutput;

/// A step whose work the device has not reported done.
pub(super) struct Launched<B: AutodiffBackend> {
    pub(super) step: u64,
    pub(super) mode: Mode,
    pub(super) lr: f64,
    pub(super) window: MicroOutput<B>,
    pub(super) numbers: Awaited,
    pub(super) time: TimeSplit,
}

/// The numbers of a step, on their way from the device.
#[derive(Default)]
pub(super) struct Awaited {
    read: Option<ReadLater>,
    parts: usize,
    /// The gradient norm, and whether the update was applied, where the host computed them.
    host: Option<(f64, bool)>,
    /// Why there was no update to decide on.
    refused: Option<String>,
}

/// The numbers of a step.
pub(super) struct Numbers {
    /// Sums of the parts of the loss, in their order.
    pub(super) sums: Vec<f64>,
    pub(super) grad_norm: f64,
    /// Whether the update was applied; one of nothing was.
    pub(super) applied: bool,
    /// Whether the optimiser has to be told so.
    pub(super) undecided: bool,
    pub(super) refused: Option<String>,
}

/// The sums of a window's parts in one tensor, `[parts]` f32; `None` without any.
pub(super) fn packed<B: AutodiffBackend>(
    window: &MicroOutput<B>,
) -> Option<Tensor<B::InnerBackend, 1>> {
    let sums = window.parts.values().map(|part| part.sum.clone().cast(DType::F32));
    let sums: Vec<_> = sums.collect();
    (!sums.is_empty()).then(|| Tensor::cat(sums, 0))
}

impl Awaited {
    /// Asks for the numbers of a step: the sums `losses` of its parts, and what became of the update where the device knows;
    /// `None` is an update of nothing.
    pub(super) fn new<B: Backend>(
        losses: Option<Tensor<B, 1>>,
        updated: Option<Updated<B>>,
    ) -> Self {
        let parts = losses.as_ref().map_or(0, |losses| losses.dims()[0]);
        let mut numbers: Vec<Tensor<B, 1>> = losses.into_iter().collect();
        let host = match updated {
            Some(Updated::Device { grad_norm, applied }) => {
                numbers.extend([grad_norm, applied].map(|number| number.cast(DType::F32)));
                None
            }
            Some(Updated::Host { grad_norm, applied }) => Some((grad_norm, applied)),
            None => Some((0.0, true)),
        };
        let read = (!numbers.is_empty())
            .then(|| B::read_later(Tensor::cat(numbers, 0).into_primitive().tensor()));
        Self { read, parts, host, refused: None }
    }

    /// The numbers of a step that was given up before its update.
    pub(super) fn refused(reason: String) -> Self {
        Self { host: Some((f64::NAN, false)), refused: Some(reason), ..Self::default() }
    }

    /// Waits for the numbers.
    pub(super) fn wait(self) -> Result<Numbers, TrainError> {
        let what = "the losses of a step";
        let values = self.read.map_or(Ok(Vec::new()), |read| read());
        let values = values.map_err(|message| TrainError::Device { what, message })?;
        let mut sums: Vec<f64> = values.into_iter().map(f64::from).collect();
        let undecided = self.host.is_none();
        let expected = self.parts + if undecided { 2 } else { 0 };
        if sums.len() != expected {
            let message = format!("expected {expected} numbers, got {}", sums.len());
            return Err(TrainError::Device { what, message });
        }
        let of_device = sums.split_off(self.parts);
        let (grad_norm, applied) = match (self.host, &of_device[..]) {
            (None, [grad_norm, applied]) => (*grad_norm, *applied != 0.0),
            (host, _) => host.unwrap_or((0.0, true)),
        };
        Ok(Numbers { sums, grad_norm, applied, undecided, refused: self.refused })
    }
}

/// The record of a step, which is counted in `totals`; `seconds` is all it took.
pub(super) fn record<B: AutodiffBackend>(
    strategy: &DualSpeedStrategy<B>,
    totals: &mut Totals,
    (step, mode, lr): (u64, Mode, f64),
    window: &MicroOutput<B>,
    numbers: &Numbers,
    split: TimeSplit,
    seconds: f64,
) -> StepRecord {
    let counts = &window.counts;
    let tokens = counts.supervised_tokens.max(1) as f64;
    let parts = || window.parts.iter().zip(&numbers.sums);
    let mean = |name: &str| {
        parts()
            .find(|((part, _), _)| part.as_str() == name)
            .map_or(0.0, |((_, part), sum)| sum / part.tokens.max(1) as f64)
    };
    let known = [CROSS_ENTROPY, DISTILLATION, CORRECT];
    let others = parts().filter(|((name, _), _)| !known.contains(&name.as_str()));
    // One count for every part, divided last. A step that was given up has no loss.
    let loss = match numbers.refused {
        Some(_) => f64::NAN,
        None => parts().map(|((_, part), sum)| part.weight * sum).sum::<f64>() / tokens,
    };
    let mut record = StepRecord {
        step,
        mode,
        lr,
        group_lr: strategy.rates.in_use(&strategy.params, lr),
        loss,
        ce: mean(CROSS_ENTROPY),
        kl: mean(DISTILLATION),
        kl_tokens: window.parts.get(DISTILLATION).map_or(0, |part| part.tokens),
        accuracy: mean(CORRECT),
        parts: others.map(|((name, _), _)| (name.clone(), mean(name))).collect(),
        supervised_tokens: counts.supervised_tokens,
        samples: counts.samples,
        skipped_samples: window.skipped.clone(),
        tokens: counts.tokens,
        tokens_unpruned: counts.tokens_unpruned,
        visual_tokens: counts.visual_tokens,
        visual_tokens_kept: counts.visual_tokens_kept,
        grad_norm: numbers.grad_norm,
        ..StepRecord::default()
    };
    if !numbers.applied {
        let reason = numbers.refused.clone().unwrap_or_else(|| reason(&record));
        record.skipped = Some(SkippedStep { reason, samples: window.samples.clone() });
    }
    totals.count(&record);
    totals.train_seconds += seconds;
    totals.time.add(&split);
    record.slow_share = totals.slow_share();
    record.skipped_steps = totals.skipped_steps;
    let done = totals.steps.max(1) as f64;
    let left = strategy.total_steps.saturating_sub(step + 1) as f64;
    let per_second = |count: usize| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
    record.time = StepTime {
        step_seconds: seconds,
        split,
        train_seconds: totals.train_seconds,
        samples_per_second: per_second(counts.samples),
        tokens_per_second: per_second(counts.tokens),
        effective_tokens_per_second: per_second(counts.tokens_unpruned),
        eta_seconds: left * totals.train_seconds / done,
        device_memory_gib: B::memory(&strategy.device)
            .map(|memory| memory.taken as f64 / (1u64 << 30) as f64),
    };
    if record.skipped.is_none() {
        record.metrics = strategy.metrics.values(&record);
    }
    record.non_finite = non_finite(&record);
    record
}

/// What of a step that was skipped is not finite.
fn reason(record: &StepRecord) -> String {
    let named = non_finite(record);
    match (named.get("loss"), named.get("grad_norm")) {
        (Some(loss), _) => format!("the loss is {loss}"),
        (None, Some(norm)) => format!("the norm of the gradients is {norm}"),
        (None, None) => match named.iter().next() {
            Some((name, value)) => format!("{name} is {value}"),
            None => "the update has values that are not finite".to_owned(),
        },
    }
}

/// The figures of a record that JSON has no number for, by key.
fn non_finite(record: &StepRecord) -> BTreeMap<String, String> {
    let StepRecord { loss, ce, kl, accuracy, grad_norm, .. } = record;
    let named =
        [("loss", loss), ("ce", ce), ("kl", kl), ("accuracy", accuracy), ("grad_norm", grad_norm)];
    let named = named.into_iter().map(|(name, value)| (name.to_owned(), *value));
    let parts = record.parts.iter().map(|(name, value)| (format!("parts.{name}"), *value));
    let all = named.chain(parts).filter(|(_, value)| !value.is_finite());
    all.map(|(name, value)| (name, value.to_string())).collect()
}
