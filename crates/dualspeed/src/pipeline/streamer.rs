//! Text as it is generated.

use std::ops::ControlFlow;

use dualspeed_data::{EncodeError, TextTokenizer};

/// Hands on the text of an answer piece by piece as its tokens come; a character of several tokens when its last one is
/// there.
pub(super) struct TextStreamer<'a> {
    tokenizer: &'a TextTokenizer,
    on_text: &'a mut dyn FnMut(&str),
    ids: Vec<i64>,
    /// Bytes of the decoded text that have been handed on.
    streamed: usize,
    error: Option<EncodeError>,
}

impl<'a> TextStreamer<'a> {
    pub(super) fn new(tokenizer: &'a TextTokenizer, on_text: &'a mut dyn FnMut(&str)) -> Self {
        Self { tokenizer, on_text, ids: Vec::new(), streamed: 0, error: None }
    }

    /// Takes the next token; breaks off the generation when it cannot be decoded.
    pub(super) fn put(&mut self, id: i64) -> ControlFlow<()> {
        self.ids.push(id);
        match self.tokenizer.decode(&self.ids) {
            Ok(text) => {
                // A character of several tokens shows as U+FFFD until its last one is there.
                let complete = text.trim_end_matches('\u{fffd}');
                if let Some(new) = complete.get(self.streamed..).filter(|new| !new.is_empty()) {
                    (self.on_text)(if self.streamed == 0 { new.trim_start() } else { new });
                    self.streamed = complete.len();
                }
                ControlFlow::Continue(())
            }
            Err(error) => {
                self.error = Some(error);
                ControlFlow::Break(())
            }
        }
    }

    /// The error that broke off the generation, if one did.
    pub(super) fn finish(self) -> Result<(), EncodeError> {
        self.error.map_or(Ok(()), Err)
    }
}
