//! All checks of a data set in one pass.

use std::collections::HashMap;
use std::time::Instant;

use rayon::prelude::*;

use super::histogram::Histogram;
use super::report::{DataReport, Finding, Findings, Severity, ViewReport};
use crate::error::DataError;
use crate::limits::{SequenceLimits, ViewTokens};
use crate::picture::DecodedImages;
use crate::source::ExampleSource;

/// What is checked, and how much of it is told.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// What the model takes; without a model, lengths are in text tokens.
    pub limits: SequenceLimits,
    /// Whether images are decoded.
    pub images: bool,
    /// Findings of each kind that are told in full.
    pub listed: usize,
}

/// Examples that are looked at between two reports of progress.
const AT_ONCE: usize = 256;

/// What was seen of one example.
struct Seen {
    faults: Vec<DataError>,
    measured: Option<Measured>,
}

struct Measured {
    views: Vec<ViewTokens>,
    supervised: usize,
    images: usize,
    largest_id: Option<i64>,
    id: String,
    digest: Option<u64>,
}

/// Checks every example of `source`: whether it can be made, its token ids, its length in every view, its images, whether it
/// is there twice. `what` names the data set; `progress` is told how many examples are done.
pub fn check(
    what: &str,
    source: &dyn ExampleSource,
    options: &CheckOptions,
    progress: &(dyn Fn(usize) + Sync),
) -> DataReport {
    let begin = Instant::now();
    let images = DecodedImages::default();
    let mut findings = Findings::new(options.listed);
    let mut totals = Totals::new(&options.limits);
    let mut twice = Twice::default();
    for start in (0..source.len()).step_by(AT_ONCE) {
        let indices = start..(start + AT_ONCE).min(source.len());
        let seen: Vec<_> = indices
            .clone()
            .into_par_iter()
            .map(|index| look_at(source, index, options, &images))
            .collect();
        for (index, Seen { faults, measured }) in indices.clone().zip(seen) {
            totals.unusable += usize::from(!faults.is_empty());
            for error in &faults {
                let finding = || Finding::of(index, error);
                findings.add(Severity::Fault, error.kind(), finding);
            }
            if let Some(measured) = measured {
                twice.add(index, &measured, &mut findings);
                totals.add(index, measured, faults.is_empty(), &mut findings);
            }
        }
        progress(indices.end);
    }
    let notes = source.notes();
    for sentence in notes.map(|notes| notes.sentences()).unwrap_or_default() {
        let finding = || Finding { record: None, line: None, id: None, message: sentence.clone() };
        findings.add(Severity::Warning, "of the whole file", finding);
    }
    let (image_files, sides) = images.finish();
    let mut report = totals.report();
    report.what = what.to_owned();
    report.records = source.len();
    report.groups = findings.finish();
    report.image_files = image_files;
    report.image_sides = Histogram::new(sides);
    report.images_checked = options.images;
    if let Some(notes) = notes {
        report.roles = notes.roles.clone();
        report.unread_keys = notes.unread_keys.clone();
    }
    report.seconds = begin.elapsed().as_secs_f64();
    report
}

fn look_at(
    source: &dyn ExampleSource,
    index: usize,
    options: &CheckOptions,
    images: &DecodedImages,
) -> Seen {
    let example = match source.outline(index) {
        Ok(example) => example,
        Err(error) => return Seen { faults: vec![error], measured: None },
    };
    let mut faults = Vec::new();
    if let Err(error) = options.limits.check(&example) {
        faults.push(source.locate(index, error.into()));
    }
    if options.images && !example.images.is_empty() {
        faults.extend(source.check_images(index, images));
    }
    let supervised = example.labels.iter().skip(1);
    let measured = Measured {
        views: options.limits.measure(&example),
        supervised: supervised.filter(|label| **label >= 0).count(),
        images: example.image_count(),
        largest_id: example.input_ids.iter().copied().max().filter(|id| *id >= 0),
        digest: source.digest(index),
        id: example.id,
    };
    Seen { faults, measured: Some(measured) }
}

/// Examples by content and by id.
#[derive(Default)]
struct Twice {
    contents: HashMap<u64, usize>,
    ids: HashMap<String, usize>,
}

impl Twice {
    fn add(&mut self, index: usize, measured: &Measured, findings: &mut Findings) {
        let id = &measured.id;
        let mut warn = |kind: &str, message: String| {
            findings.add(Severity::Warning, kind, || Finding {
                record: Some(index),
                line: None,
                id: Some(id.clone()),
                message,
            });
        };
        let same = measured.digest.map(|digest| *self.contents.entry(digest).or_insert(index));
        if let Some(first) = same.filter(|first| *first != index) {
            let message = format!("record {index} (id {id:?}) says the same as record {first}");
            warn("record is there twice", message);
            return;
        }
        let first = *self.ids.entry(id.clone()).or_insert(index);
        if first != index {
            let message = format!(
                "record {index} has the id {id:?} of record {first}, which says something else"
            );
            warn("id is there twice", message);
        }
    }
}

/// Sums over all examples.
struct Totals<'a> {
    limits: &'a SequenceLimits,
    lengths: Vec<Vec<usize>>,
    views: Vec<ViewReport>,
    supervised: Vec<usize>,
    images: usize,
    text_only: usize,
    unusable: usize,
    largest_id: Option<i64>,
}

impl<'a> Totals<'a> {
    fn new(limits: &'a SequenceLimits) -> Self {
        let views = limits.views.iter();
        let views =
            views.map(|view| ViewReport { view: view.name.clone(), ..ViewReport::default() });
        Self {
            limits,
            lengths: vec![Vec::new(); limits.views.len()],
            views: views.collect(),
            supervised: Vec::new(),
            images: 0,
            text_only: 0,
            unusable: 0,
            largest_id: None,
        }
    }

    fn add(&mut self, index: usize, measured: Measured, usable: bool, findings: &mut Findings) {
        self.supervised.push(measured.supervised);
        self.images += measured.images;
        self.text_only += usize::from(measured.images == 0);
        self.largest_id = self.largest_id.max(measured.largest_id);
        let mut said = Vec::new();
        for (at, tokens) in measured.views.iter().enumerate() {
            self.lengths[at].push(tokens.length);
            let view = &mut self.views[at];
            let lost = tokens.supervised - tokens.supervised_kept;
            let cut = tokens.kept < tokens.length;
            view.cut += usize::from(cut);
            view.answers_cut_off += usize::from(lost > 0 && tokens.supervised_kept == 0);
            view.answers_shortened += usize::from(lost > 0 && tokens.supervised_kept > 0);
            view.supervised_lost += lost;
            view.images_lost += tokens.images_lost;
            if cut {
                let lost = match (lost, tokens.images_lost) {
                    (0, _) => "nothing supervised".to_owned(),
                    (lost, 0) => format!("{lost} of {} supervised tokens", tokens.supervised),
                    (lost, images) => format!(
                        "{lost} of {} supervised tokens and {images} image(s)",
                        tokens.supervised
                    ),
                };
                said.push(format!(
                    "{lost} in {} view, where it has {} tokens",
                    view.view, tokens.length
                ));
            }
        }
        // What cannot be used at all has been named.
        if usable && !said.is_empty() {
            let shortened =
                measured.views.iter().any(|view| view.supervised_kept < view.supervised);
            let kind = if shortened {
                "answers shortened by max_length"
            } else {
                "cut after its last answer"
            };
            let id = measured.id;
            findings.add(Severity::Warning, kind, || Finding {
                record: Some(index),
                line: None,
                message: format!("record {index} (id {id:?}) loses {}", said.join("; ")),
                id: Some(id),
            });
        }
    }

    fn report(self) -> DataReport {
        let views = self.views.into_iter().zip(self.lengths);
        let views =
            views.map(|(view, lengths)| ViewReport { lengths: Histogram::new(lengths), ..view });
        DataReport {
            unusable: self.unusable,
            text_only: self.text_only,
            images: self.images,
            vocab_size: self.limits.vocab_size,
            max_length: self.limits.max_length,
            largest_token_id: self.largest_id,
            views: views.collect(),
            supervised: Histogram::new(self.supervised),
            ..DataReport::default()
        }
    }
}
