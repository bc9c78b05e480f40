//! Evaluation on questions with known answers: is the arg max at the answer's position the answer's
//! token?

use std::collections::BTreeMap;
use std::time::Instant;

use dualspeed_data::{ExampleSource, HostBatch, QuestionKind, collate};
use dualspeed_model::{Forward, Llava, Needs, Pruner, StepContext, View};
use dualspeed_ops::{Backend, to_f32, token_losses};
use serde::{Deserialize, Serialize};

use crate::error::TrainError;
use crate::features::FeatureCache;
use crate::inputs::inputs;
use crate::metrics::progress_bar;

/// One setting to evaluate in.
#[derive(Clone, Debug)]
pub struct EvalView {
    /// The name in reports: `full`, `pruned`, `pruned_no_isolator`, ...
    pub name: String,
    /// What the language model sees.
    pub view: View,
}

impl EvalView {
    /// A named view.
    pub fn new(name: impl Into<String>, view: View) -> Self {
        Self { name: name.into(), view }
    }
}

/// Accuracy of one kind of question.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct KindAccuracy {
    /// Share of right answers in [0, 1]; 0 when there is no question.
    pub accuracy: f64,
    /// Number of questions.
    pub questions: usize,
}

/// Results in one view.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ViewReport {
    /// The view's name.
    pub name: String,
    /// Share of right answers over all questions.
    pub accuracy: f64,
    /// Number of questions.
    pub questions: usize,
    /// By kind of question.
    pub by_kind: BTreeMap<QuestionKind, KindAccuracy>,
    /// Cross entropy per supervised token.
    pub ce: f64,
    /// Number of supervised tokens.
    pub supervised_tokens: usize,
    /// Mean number of visual tokens per sample that the language model saw.
    pub visual_tokens: f64,
    /// Seconds spent on pruning, over all samples; exact where the device computes at once (CPUs).
    #[serde(default)]
    pub prune_seconds: f64,
}

/// Results in all views.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EvalReport {
    /// One report per view, in the order asked for.
    pub views: Vec<ViewReport>,
    /// Number of samples.
    pub samples: usize,
    /// Seconds it took.
    pub seconds: f64,
}

impl EvalReport {
    /// The report of a view by name.
    pub fn view(&self, name: &str) -> Option<&ViewReport> {
        self.views.iter().find(|report| report.name == name)
    }
}

/// How an evaluation runs.
#[derive(Clone, Copy, Debug)]
pub struct EvalOptions {
    /// Samples per forward.
    pub batch: usize,
    /// Seed of pruners that draw.
    pub seed: u64,
    /// Whether a progress bar is shown.
    pub progress: bool,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { batch: 64, seed: 0, progress: false }
    }
}

/// Evaluates `model` on every question of `source` in every view, teacher-forced: the answers of
/// earlier turns are given.
///
/// The arg max at the position before the answer is compared with the answer's first token, which
/// for the embedded data is the whole answer. The tower runs once per batch for all views.
/// Without autodiff, so pass the inner model.
///
/// # Errors
/// Unreadable samples; a pruned view without a pruner.
pub fn evaluate<B: Backend>(
    model: &Llava<B>,
    source: &dyn ExampleSource,
    features: Option<&FeatureCache>,
    views: &[EvalView],
    pruner: Option<&dyn Pruner<B>>,
    device: &B::Device,
    options: EvalOptions,
) -> Result<EvalReport, TrainError> {
    let begin = Instant::now();
    let needs = pruner.map_or_else(Needs::none, |pruner| pruner.needs());
    let mut tallies = vec![Tally::default(); views.len()];
    let bar = progress_bar(source.len() as u64, options.progress, "evaluate");
    let batch_size = options.batch.max(1);
    for start in (0..source.len()).step_by(batch_size) {
        let indices = start..(start + batch_size).min(source.len());
        let examples = indices.map(|index| source.get(index)).collect::<Result<Vec<_>, _>>()?;
        bar.inc(examples.len() as u64);
        let batch = collate(examples);
        let inputs = inputs(model, features, &batch, &needs, device)?;
        let ctx = StepContext::inference(options.seed);
        for (view, tally) in views.iter().zip(&mut tallies) {
            let clock = Instant::now();
            let selection = model.select(&inputs, &view.view, pruner, &ctx)?;
            tally.prune_seconds += clock.elapsed().as_secs_f64();
            let forward = model.run(&inputs, selection.as_ref(), &view.view, &ctx, None)?;
            let hidden = forward.hidden.clone();
            let targets = forward.targets_tensor();
            let losses = token_losses(hidden, model.lm_head_weight(), targets, None, 1.0);
            tally.count(&batch, &forward, &to_f32(losses));
        }
    }
    bar.finish_and_clear();
    let samples = source.len();
    let reports = views.iter().zip(tallies).map(|(view, tally)| tally.report(&view.name, samples));
    Ok(EvalReport { views: reports.collect(), samples, seconds: begin.elapsed().as_secs_f64() })
}

#[derive(Clone, Default)]
struct Tally {
    kinds: BTreeMap<QuestionKind, (usize, usize)>,
    ce: f64,
    tokens: usize,
    visual_tokens: usize,
    prune_seconds: f64,
}

impl Tally {
    /// `losses` has three numbers per supervised row: cross entropy, KL, right or not.
    fn count<B: Backend>(&mut self, batch: &HostBatch, forward: &Forward<B>, losses: &[f32]) {
        self.ce += losses.chunks(3).map(|row| f64::from(row[0])).sum::<f64>();
        self.tokens += losses.len() / 3;
        self.visual_tokens += forward.visual_tokens;
        for (sample, questions) in batch.questions.iter().enumerate() {
            for question in questions {
                // What was cut off counts as wrong.
                let row = forward.row_of(sample, question.answer_position);
                let right =
                    row.and_then(|row| losses.get(3 * row + 2)).is_some_and(|hit| *hit > 0.5);
                let (hits, asked) = self.kinds.entry(question.kind).or_default();
                *hits += usize::from(right);
                *asked += 1;
            }
        }
    }

    fn report(self, name: &str, samples: usize) -> ViewReport {
        let share = |hits: usize, of: usize| hits as f64 / of.max(1) as f64;
        let (hits, questions) =
            self.kinds.values().fold((0, 0), |(h, q), (hits, asked)| (h + hits, q + asked));
        let by_kind = self.kinds.into_iter().map(|(kind, (hits, asked))| {
            (kind, KindAccuracy { accuracy: share(hits, asked), questions: asked })
        });
        ViewReport {
            name: name.to_owned(),
            accuracy: share(hits, questions),
            questions,
            by_kind: by_kind.collect(),
            ce: self.ce / self.tokens.max(1) as f64,
            supervised_tokens: self.tokens,
            visual_tokens: self.visual_tokens as f64 / samples.max(1) as f64,
            prune_seconds: self.prune_seconds,
        }
    }
}
