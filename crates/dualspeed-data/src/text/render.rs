//! Conversations to text, with the places of what the model says.

use std::ops::Range;

use minijinja::Value;

use super::chat_template::{ChatTemplate, Content, template_error};
use super::conversation::{Conversation, IMAGE_PLACEHOLDER, Turn, plain_text};
use super::marks::{GENERATION, GUARD};
use super::template::Template;
use super::tokenizer::TextTokenizer;
use crate::error::EncodeError;

/// A conversation written out. Offsets are in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Rendered {
    /// The text; it spells special tokens, and the image token once per image.
    pub(super) text: String,
    /// What the model is trained to say, in order.
    pub(super) answers: Vec<Range<usize>>,
    /// Whether an end token has to be put behind the last answer, as the template writes none.
    pub(super) open_end: bool,
}

/// Writes a conversation out with a template.
///
/// # Errors
/// [`EncodeError::Template`] if the template refuses the conversation, leaves out a part of it, or does not write answers in a
/// way that they can be found again.
pub(super) fn render(
    conversation: &Conversation,
    template: &Template,
    tokenizer: &TextTokenizer,
) -> Result<Rendered, EncodeError> {
    template.check(tokenizer)?;
    let chat = template.chat_template()?;
    let writer = Writer { conversation, tokenizer, chat: &chat, tokens: tokenizer.variables() };
    writer.check_marks()?;
    let open = conversation.turns.last().is_some_and(|turn| turn.assistant.is_none());
    let full = writer.write(conversation.turns.len(), open, open)?;
    let (text, answers) = match (chat.marks_generation(), open) {
        (true, _) => cut_marks(&full)?,
        (false, true) => (full, Vec::new()),
        (false, false) => {
            let answers = writer.find_answers(&full)?;
            (full, answers)
        }
    };
    writer.check_images(&text)?;
    if *template != Template::Plain {
        writer.check_system(&text)?;
    }
    let mut rendered = Rendered { text, answers, open_end: false };
    if !open && template.name().is_none() {
        rendered.close(tokenizer);
    }
    Ok(rendered)
}

impl Rendered {
    /// Takes end tokens that stand right behind answers into them, and finds out whether the last answer has one.
    fn close(&mut self, tokenizer: &TextTokenizer) {
        for answer in &mut self.answers {
            let (said, after) = (&self.text[answer.clone()], &self.text[answer.end..]);
            if !tokenizer.ends_with_special(said)
                && let Some(token) = tokenizer.leading_special(after)
                && !self.text.starts_with(token)
            {
                answer.end += token.len();
            }
        }
        let Some(last) = self.answers.last_mut() else { return };
        if tokenizer.ends_with_special(&self.text[last.clone()]) {
            return;
        }
        // What the template writes behind the answer comes before the end token; it is learned with it.
        last.end = self.text.len();
        self.open_end = true;
    }
}

/// What one conversation is written with.
struct Writer<'a> {
    conversation: &'a Conversation,
    tokenizer: &'a TextTokenizer,
    chat: &'a ChatTemplate,
    tokens: &'a Value,
}

impl Writer<'_> {
    /// Writes the first `turns` turns; the last one without its answer if `open`.
    fn write(&self, turns: usize, open: bool, prompt: bool) -> Result<String, EncodeError> {
        let mut messages = Vec::new();
        if let Some(system) = self.system()? {
            messages.push(self.message("system", vec![Part::Text(system)]));
        }
        for (index, Turn { user, assistant }) in
            self.conversation.turns.iter().take(turns).enumerate()
        {
            messages.push(self.message("user", self.user_parts(user)));
            if let Some(answer) = assistant.as_deref().filter(|_| !open || index + 1 < turns) {
                let answer = if self.tokenizer.is_official() { answer } else { answer.trim() };
                messages.push(self.message("assistant", vec![Part::Text(answer)]));
            }
        }
        self.chat.render(messages, self.tokens, prompt)
    }

    /// What a human says. The published code trims text beside images only.
    fn user_parts<'b>(&self, user: &'b str) -> Vec<Part<'b>> {
        match self.tokenizer.is_official() && !user.contains(IMAGE_PLACEHOLDER) {
            true => vec![Part::Text(user)],
            false => parts(user),
        }
    }

    /// The system message. An empty system prompt is written only where the template would put one of its own.
    fn system(&self) -> Result<Option<&str>, EncodeError> {
        match self.conversation.system.as_deref() {
            Some("") if self.chat.own_system(self.tokens).is_none() => Ok(None),
            system => Ok(system),
        }
    }

    fn message(&self, role: &str, parts: Vec<Part<'_>>) -> Value {
        let content = match self.chat.content() {
            Content::Parts => {
                let parts = parts.into_iter().map(|part| match part {
                    Part::Image => Value::from_pairs([("type", Value::from("image"))]),
                    Part::Text(text) => Value::from_pairs([
                        ("type", Value::from("text")),
                        ("text", Value::from(self.guarded(text))),
                    ]),
                });
                Value::from(parts.collect::<Vec<_>>())
            }
            Content::Text => Value::from(self.in_text(&parts)),
        };
        Value::from_pairs([("role", Value::from(role)), ("content", content)])
    }

    /// Images within text, for templates that know none: as LLaVA writes them, one alone at the front.
    fn in_text(&self, parts: &[Part<'_>]) -> String {
        let image = self.tokenizer.image_token();
        let images = parts.iter().filter(|part| **part == Part::Image).count();
        let mut text = String::new();
        for part in parts {
            match part {
                Part::Text(part) => text.push_str(&self.guarded(part)),
                Part::Image if images == 1 => {}
                Part::Image => {
                    text.push_str(image);
                    if text.trim_start_matches(image).trim_start_matches('\n').is_empty() {
                        text.push('\n');
                    }
                }
            }
        }
        match images {
            1 => format!("{image}\n{}", text.trim()),
            _ => text,
        }
    }

    /// Text that spells no special token.
    fn guarded(&self, text: &str) -> String {
        let text = plain_text(text);
        self.tokenizer.guard(&text, GUARD).into_owned()
    }

    /// Refuses text with the characters that are used as marks.
    fn check_marks(&self) -> Result<(), EncodeError> {
        let marked = |text: &str| text.contains([GENERATION[0], GENERATION[1], GUARD]);
        let Conversation { system, turns } = self.conversation;
        let found = system.as_deref().is_some_and(marked)
            || turns
                .iter()
                .any(|turn| marked(&turn.user) || turn.assistant.as_deref().is_some_and(marked));
        match found {
            false => Ok(()),
            true => {
                Err(self
                    .error("the text has one of the characters U+10FF00 to U+10FF02; remove it"))
            }
        }
    }

    /// Refuses a text that has not all images in it.
    fn check_images(&self, text: &str) -> Result<(), EncodeError> {
        let images = text.matches(self.tokenizer.image_token()).count();
        let expected = self.conversation.placeholders();
        if images != expected {
            let image = self.tokenizer.image_token();
            return Err(
                self.error(format!("it writes {image:?} {images} time(s) for {expected} image(s)"))
            );
        }
        Ok(())
    }

    /// Refuses a text that has not the system prompt in it.
    fn check_system(&self, text: &str) -> Result<(), EncodeError> {
        match self.conversation.system.as_deref().map(str::trim) {
            Some(system) if !text.contains(&self.guarded(system)) => {
                Err(self.error("it has no place for a system prompt; leave `system` out, or"))
            }
            _ => Ok(()),
        }
    }

    /// Finds the answers of a template that does not mark them: what stands between the text that asks for an answer and
    /// the text with that answer.
    fn find_answers(&self, full: &str) -> Result<Vec<Range<usize>>, EncodeError> {
        let turns = self.conversation.turns.len();
        let mut answers: Vec<Range<usize>> = Vec::with_capacity(turns);
        for turn in 1..=turns {
            let prompt = self.write(turn, true, true)?;
            let answered = match turn == turns {
                true => full.to_owned(),
                false => self.write(turn, false, false)?,
            };
            let after = answers.last().map_or(0, |last| last.end);
            let fits = full.starts_with(&prompt)
                && full.starts_with(&answered)
                && after <= prompt.len()
                && prompt.len() < answered.len();
            if !fits {
                return Err(self.error(format!(
                    "the prompt for answer {turn} of {turns} is not how the conversation with that answer begins, so what \
                     the model says cannot be told from what it is given"
                )));
            }
            let said = &full[prompt.len()..answered.len()];
            answers.push(prompt.len()..prompt.len() + said.trim_end().len());
        }
        Ok(answers)
    }

    fn error(&self, problem: impl Into<String>) -> EncodeError {
        template_error("chat template", problem.into())
    }
}

impl Template {
    /// Whether answers end in a special token, so that a model learns to stop: a template that ends none gets the tokenizer's
    /// end token behind the last answer of every example.
    ///
    /// # Errors
    /// [`EncodeError::Template`] if it cannot be followed.
    pub fn ends_answers(&self, tokenizer: &TextTokenizer) -> Result<bool, EncodeError> {
        let conversation = Conversation::new([("probe", "probe")]);
        Ok(!render(&conversation, self, tokenizer)?.open_end)
    }
}

/// A piece of what a human says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part<'a> {
    Image,
    Text(&'a str),
}

/// Cuts what a human says into images and text. White space between images at the front and the text, and between the text
/// and images at the end, belongs to the placeholders; so does white space at the ends.
fn parts(user: &str) -> Vec<Part<'_>> {
    let pieces: Vec<&str> = user.split(IMAGE_PLACEHOLDER).collect();
    let first = pieces.iter().position(|piece| !piece.trim().is_empty());
    let last = pieces.iter().rposition(|piece| !piece.trim().is_empty());
    let mut parts = Vec::new();
    for (index, piece) in pieces.iter().enumerate() {
        if index > 0 {
            parts.push(Part::Image);
        }
        let (Some(first), Some(last)) = (first, last) else { continue };
        if !(first..=last).contains(&index) {
            continue;
        }
        let mut text = *piece;
        if index == first {
            text = text.trim_start();
        }
        if index == last {
            text = text.trim_end();
        }
        if !text.is_empty() {
            parts.push(Part::Text(text));
        }
    }
    parts
}

/// Takes the marks of `{% generation %}` out of a text and finds where they stood.
fn cut_marks(marked: &str) -> Result<(String, Vec<Range<usize>>), EncodeError> {
    let [open, close] = GENERATION;
    let (mut text, mut answers, mut start) =
        (String::with_capacity(marked.len()), Vec::new(), None);
    for c in marked.chars() {
        match (c, start) {
            (c, None) if c == open => start = Some(text.len()),
            (c, Some(from)) if c == close => {
                answers.push(from..text.len());
                start = None;
            }
            (c, _) if c == open || c == close => {
                let problem = "it writes `{% generation %}` within itself";
                return Err(template_error("chat template", problem.into()));
            }
            (c, _) => text.push(c),
        }
    }
    Ok((text, answers))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_beside_images_at_the_ends_is_theirs() {
        use Part::{Image, Text};
        let cases: [(&str, &[Part<'_>]); 6] = [
            ("<image>\nwhat", &[Image, Text("what")]),
            ("what\n<image>", &[Text("what"), Image]),
            (" <image>\n<image>\n both ", &[Image, Image, Text("both")]),
            ("a <image>\n b <image>.", &[Text("a "), Image, Text("\n b "), Image, Text(".")]),
            ("<image>", &[Image]),
            (" plain ", &[Text("plain")]),
        ];
        for (user, expected) in cases {
            assert_eq!(parts(user), expected, "{user:?}");
        }
    }
}
