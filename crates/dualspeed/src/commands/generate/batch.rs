//! `dualspeed generate --batch`: a file of questions, answered line by line.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use anyhow::Context;
use dualspeed_data::{EncodeError, ImageError};
use dualspeed_ops::Backend;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::output::OutputLine;
use crate::error_chain::error_chain;
use crate::output::{note, print_line};
use crate::pipeline::{GenerationRequest, GenerationSettings, Pipeline};

/// A question; other keys do not matter.
#[derive(Debug, Deserialize)]
struct BatchLine {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    question_id: Value,
    #[serde(alias = "text", alias = "question")]
    prompt: String,
    #[serde(alias = "images")]
    image: Option<OneOrMany>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

/// An answer, under the name of its question as that was written.
#[derive(Debug, Serialize)]
struct AnswerLine<'a> {
    #[serde(skip_serializing_if = "Value::is_null")]
    id: &'a Value,
    #[serde(skip_serializing_if = "Value::is_null")]
    question_id: &'a Value,
    #[serde(flatten)]
    output: OutputLine<'a>,
}

/// Why a line is not answered.
#[derive(Debug)]
enum Unanswered {
    /// The line's own fault: the others are answered all the same.
    Line(anyhow::Error),
    /// The others would fare no better.
    All(anyhow::Error),
}

/// Answers every line of a JSONL file with a line of JSON, in order. Lines that cannot be answered are named on standard
/// error and left out.
pub(super) fn answer_all<B: Backend>(
    pipeline: &Pipeline<B>,
    path: &Path,
    settings: &GenerationSettings<'_, B>,
    device: &B::Device,
) -> anyhow::Result<()> {
    let file = std::fs::File::open(path)
        .with_context(|| format!("cannot read {}; check the path", path.display()))?;
    // Images are named relative to the file that names them.
    let root = path.parent().unwrap_or(Path::new(""));
    let (mut lines, mut skipped) = (0, 0);
    for (number, line) in std::io::BufReader::new(file).lines().enumerate() {
        let place = || format!("{}:{}", path.display(), number + 1);
        let line = line.with_context(place)?;
        if line.trim().is_empty() {
            continue;
        }
        lines += 1;
        match answer(pipeline, &line, root, settings, device) {
            Ok(()) => {}
            Err(Unanswered::Line(error)) => {
                skipped += 1;
                note(format_args!("{}: left out: {}", place(), error_chain(&error)));
            }
            Err(Unanswered::All(error)) => return Err(error.context(place())),
        }
    }
    anyhow::ensure!(
        skipped == 0,
        "{}: {skipped} of {lines} lines were left out, the others are answered",
        path.display()
    );
    Ok(())
}

fn answer<B: Backend>(
    pipeline: &Pipeline<B>,
    line: &str,
    root: &Path,
    settings: &GenerationSettings<'_, B>,
    device: &B::Device,
) -> Result<(), Unanswered> {
    let line: BatchLine = serde_json::from_str(line)
        .context("a line looks like {\"id\": 1, \"image\": \"a.png\", \"prompt\": \"..\"}")
        .map_err(Unanswered::Line)?;
    let images = match line.image {
        None => Vec::new(),
        Some(OneOrMany::One(image)) => vec![image],
        Some(OneOrMany::Many(images)) => images,
    };
    let images = images.into_iter().map(|image| root.join(image)).collect();
    let request = GenerationRequest { prompt: line.prompt, images };
    request.check().map_err(Unanswered::Line)?;
    let output =
        pipeline.generate(&request, settings, device, &mut |_| {}).map_err(|error| match error
            .is::<ImageError>(
        ) || error
            .is::<EncodeError>()
        {
            true => Unanswered::Line(error),
            false => Unanswered::All(error),
        })?;
    let answer = AnswerLine {
        id: &line.id,
        question_id: &line.question_id,
        output: OutputLine::new(&request.prompt, &output),
    };
    let answer = serde_json::to_string(&answer).map_err(anyhow::Error::from);
    answer.and_then(print_line).map_err(Unanswered::All)
}
