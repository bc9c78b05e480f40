//! Lengths against `max_length` and token ids against the embedding, for a whole data set and before its first step.

use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;

use crate::error::DataError;
use crate::example::Example;
use crate::limits::SequenceLimits;
use crate::source::ExampleSource;

/// What truncation does in one view.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewCuts {
    /// Name of the view.
    pub view: String,
    /// Examples that are longer than `max_length`.
    pub cut: usize,
    /// Those whose answers lose some of their tokens, but not all.
    pub answers_shortened: usize,
    /// Supervised tokens that those lose together.
    pub supervised_lost: usize,
    /// The longest example, as far as it was looked at.
    pub longest: usize,
}

/// What a data set is like against the limits of a model.
#[derive(Debug, Default)]
pub struct LengthCheck {
    /// Truncation by view.
    pub views: Vec<ViewCuts>,
    /// What cannot be used, in order.
    pub faults: Vec<DataError>,
    /// Whether it was ended early.
    pub interrupted: bool,
}

/// Checks the lengths and token ids of all examples. Those that must fit, by what [`ExampleSource::length_bound`] says,
/// are not looked at. `progress` is told how many are done.
pub fn check_lengths(
    source: &dyn ExampleSource,
    limits: &SequenceLimits,
    stop: &AtomicBool,
    progress: &(dyn Fn(usize) + Sync),
) -> LengthCheck {
    /// Examples between two looks at `stop`.
    const AT_ONCE: usize = 4096;
    let mut check = LengthCheck {
        views: limits
            .views
            .iter()
            .map(|view| ViewCuts { view: view.name.clone(), ..ViewCuts::default() })
            .collect(),
        ..LengthCheck::default()
    };
    let ids_fit = limits.vocab_size.is_none_or(|rows| {
        source.tokenizer().is_some_and(|tokenizer| tokenizer.vocab_size() <= rows)
    });
    if ids_fit && limits.max_length.is_none() {
        return check;
    }
    let must_fit = |index: usize| ids_fit && must_fit(source, index, limits);
    for start in (0..source.len()).step_by(AT_ONCE) {
        // A check that is over in a moment is not worth ending a run before its first step.
        if start > 0 && stop.load(Ordering::Relaxed) {
            check.interrupted = true;
            break;
        }
        let indices = start..(start + AT_ONCE).min(source.len());
        let looked_at: Vec<_> = indices
            .clone()
            .into_par_iter()
            .filter(|index| !must_fit(*index))
            .map(|index| look_at(source, index, limits))
            .collect();
        for result in looked_at {
            match result {
                Err(error) => check.faults.push(error),
                Ok(example) => {
                    for (cuts, tokens) in check.views.iter_mut().zip(limits.measure(&example)) {
                        let lost = tokens.supervised - tokens.supervised_kept;
                        cuts.cut += usize::from(tokens.kept < tokens.length);
                        cuts.answers_shortened += usize::from(lost > 0);
                        cuts.supervised_lost += lost;
                        cuts.longest = cuts.longest.max(tokens.length);
                    }
                }
            }
        }
        progress(indices.end);
    }
    check
}

/// Makes the outline of an example that the model can take.
///
/// # Errors
/// What is wrong with it, with where it lies.
fn look_at(
    source: &dyn ExampleSource,
    index: usize,
    limits: &SequenceLimits,
) -> Result<Example, DataError> {
    let example = source.outline(index)?;
    limits.check(&example).map_err(|error| source.locate(index, error.into()))?;
    Ok(example)
}

/// Whether an example fits by the little that is known of it without reading it.
fn must_fit(source: &dyn ExampleSource, index: usize, limits: &SequenceLimits) -> bool {
    let Some(bound) = source.length_bound(index) else { return false };
    let Some(max_length) = limits.max_length else { return true };
    limits.longest(bound).is_some_and(|longest| longest <= max_length)
}
