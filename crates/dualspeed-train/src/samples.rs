//! Which samples a run can use: token ids within the embedding, something to learn from in every view it is trained in.
//!
//! The whole data set is checked before the first step, and every sample again when it is loaded, by the same rule: what
//! is refused does not depend on the batch it comes in.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use dualspeed_data::check::{LengthCheck, check_lengths};
use dualspeed_data::{
    BadRecords, DataError, Example, ExampleSource, OnError, SequenceLimits, ViewLength,
};
use dualspeed_model::Pruner;
use dualspeed_ops::Backend;

use crate::config::TrainConfig;
use crate::error::TrainError;
use crate::metrics::progress_bar;

/// What the model of `config` takes of an example, and in which views it is trained. A pruner inside the decoder sees all
/// visual tokens.
pub fn sequence_limits<B: Backend>(config: &TrainConfig, pruner: &dyn Pruner<B>) -> SequenceLimits {
    let n = config.model.num_visual_tokens();
    let keep = config.keep_count(n);
    let sees_all = pruner.keeps_all() || pruner.layer_drop(keep).is_some();
    let schedule = config.schedule().name;
    let distils = config.distill.lambda > 0.0;
    let view = |name: &str, isolator_length, keep, trained| ViewLength {
        name: name.into(),
        isolator_length,
        keep,
        trained,
    };
    SequenceLimits {
        vocab_size: Some(config.model.text.vocab_size),
        max_length: config.model.max_length,
        tile_tokens: n,
        tiles: config.model.anyres.is_some(),
        views: vec![
            view("full", 0, None, schedule != "always_fast"),
            view(
                "pruned",
                config.model.isolator_length,
                (!sees_all).then_some(keep),
                schedule != "always_slow" || distils,
            ),
        ],
    }
}

/// Which samples can be used, and what becomes of the others.
#[derive(Clone)]
pub struct SampleCheck {
    limits: Arc<SequenceLimits>,
    on_error: OnError,
    /// That many samples in a row that cannot be used end the run.
    pub(crate) max_skipped: usize,
    /// Samples that were named on standard error.
    named: Arc<Mutex<HashSet<String>>>,
}

/// A sample that was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SkippedSample {
    /// Its place among the samples that were asked for.
    pub position: usize,
    /// Its id.
    pub id: String,
    /// What is wrong with it.
    pub problem: String,
}

/// Samples that were asked for.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    /// Those that can be used, in order.
    pub examples: Vec<Example>,
    /// Those that were left out.
    pub skipped: Vec<SkippedSample>,
}

impl SampleCheck {
    /// Makes the check of a run.
    pub fn new(config: &TrainConfig, limits: SequenceLimits) -> Self {
        Self {
            limits: Arc::new(limits),
            on_error: config.data.on_error,
            max_skipped: config.data.max_skipped,
            named: Arc::default(),
        }
    }

    /// The check of data that is only seen in full view: that of validation.
    pub fn full_view(self) -> Self {
        let mut limits = SequenceLimits::clone(&self.limits);
        for view in &mut limits.views {
            view.trained = view.name == "full";
        }
        Self { limits: Arc::new(limits), ..self }
    }

    /// What the model takes of an example.
    pub fn limits(&self) -> &SequenceLimits {
        &self.limits
    }

    /// Loads samples; those that cannot be used are an error, or left out and named once.
    pub(crate) fn load(
        &self,
        source: &dyn ExampleSource,
        indices: impl IntoIterator<Item = usize>,
    ) -> Result<Loaded, DataError> {
        let mut loaded = Loaded::default();
        for (position, index) in indices.into_iter().enumerate() {
            let example = source.get(index).and_then(|example| {
                let fits = self.limits.check(&example);
                fits.map_err(|error| source.locate(index, error.into()))?;
                Ok(example)
            });
            match example {
                Ok(example) => loaded.examples.push(example),
                Err(error) if self.on_error == OnError::Stop => return Err(error),
                Err(error) => {
                    let (id, problem) = (source.id(index), error.to_string());
                    let mut named = self.named.lock().unwrap_or_else(PoisonError::into_inner);
                    if named.insert(id.clone()) {
                        tracing::warn!("sample {id:?} is left out: {problem}");
                    }
                    loaded.skipped.push(SkippedSample { position, id, problem });
                }
            }
        }
        Ok(loaded)
    }

    /// Checks a whole data set, `what` by name, before it is trained on: says what truncation will do, and which samples
    /// cannot be used.
    ///
    /// # Errors
    /// All samples that cannot be used, unless they are to be skipped; [`TrainError::CheckInterrupted`].
    pub(crate) fn whole(
        &self,
        what: &str,
        source: &dyn ExampleSource,
        stop: &AtomicBool,
        shown: bool,
    ) -> Result<(), TrainError> {
        for sentence in source.notes().map(|notes| notes.sentences()).unwrap_or_default() {
            tracing::warn!("{what}: {sentence}");
        }
        let unusable = source.notes().map_or(0, |notes| notes.unusable);
        if unusable > 0 {
            tracing::warn!("{what}: {unusable} of {} records cannot be used", source.len());
        }
        let (of, reached) = (source.len(), AtomicUsize::new(0));
        let bar = progress_bar(of as u64, shown, "check data");
        let check = check_lengths(source, &self.limits, stop, &|done| {
            reached.store(done, Ordering::Relaxed);
            bar.set_position(done as u64);
        });
        bar.finish_and_clear();
        if check.interrupted {
            return Err(TrainError::CheckInterrupted { done: reached.into_inner(), of });
        }
        self.say_cuts(what, &check);
        if check.faults.is_empty() {
            return Ok(());
        }
        let bad = BadRecords::new(what, check.faults, of);
        match self.on_error {
            OnError::Stop => Err(DataError::Several(bad).into()),
            OnError::Skip => {
                tracing::warn!("{} of {of} samples of {what} will be left out", bad.bad);
                Ok(())
            }
        }
    }

    fn say_cuts(&self, what: &str, check: &LengthCheck) {
        let Some(max_length) = self.limits.max_length else { return };
        for (cuts, view) in check.views.iter().zip(&self.limits.views) {
            if !view.trained || cuts.cut == 0 {
                continue;
            }
            tracing::warn!(
                "{what}: model.max_length = {max_length} cuts {} sample(s) in {} view, the longest of {} tokens; {} of them lose \
                 part of their answers, {} supervised tokens in all",
                cuts.cut,
                cuts.view,
                cuts.longest,
                cuts.answers_shortened,
                cuts.supervised_lost
            );
        }
    }
}
