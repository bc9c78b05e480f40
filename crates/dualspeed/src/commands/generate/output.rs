//! What is printed of an answer as JSON.

use serde::Serialize;

use crate::pipeline::GenerationOutput;

/// A line of what `--json` and `--batch` print.
#[derive(Debug, Serialize)]
pub(super) struct OutputLine<'a> {
    prompt: &'a str,
    text: &'a str,
    prompt_ids: &'a [i64],
    ids: &'a [i64],
    log_probs: &'a [f64],
    finished: bool,
}

impl<'a> OutputLine<'a> {
    pub(super) fn new(prompt: &'a str, output: &'a GenerationOutput) -> Self {
        Self {
            prompt,
            text: &output.text,
            prompt_ids: &output.prompt_ids,
            ids: &output.generated.ids,
            log_probs: &output.generated.log_probs,
            finished: output.generated.finished,
        }
    }
}
