//! A conversation, before any template.

use std::borrow::Cow;

/// Stands for an image in human turns. Data that means the letters themselves writes `\<image>`.
pub const IMAGE_PLACEHOLDER: &str = "<image>";

/// Questions and answers in turn.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Conversation {
    /// The system prompt: `None` is the template's own, `Some("")` is none at all.
    pub system: Option<String>,
    /// The turns, oldest first.
    pub turns: Vec<Turn>,
}

/// One question and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Turn {
    /// What the human says; `<image>` stands for an image.
    pub user: String,
    /// What the model answers; `None` in the open last turn of a prompt.
    pub assistant: Option<String>,
}

impl Conversation {
    /// Makes a conversation of answered questions, with the template's system prompt.
    pub fn new<Q: Into<String>, A: Into<String>>(turns: impl IntoIterator<Item = (Q, A)>) -> Self {
        let turns = turns.into_iter();
        Self { system: None, turns: turns.map(|(q, a)| Turn::answered(q, a)).collect() }
    }

    /// Finds what the human says first, without `<image>` and the blanks around it.
    pub fn prompt(&self) -> String {
        let first = self.turns.first().map_or("", |turn| turn.user.as_str());
        let parts = first.split(IMAGE_PLACEHOLDER).map(str::trim).filter(|part| !part.is_empty());
        plain_text(&parts.collect::<Vec<_>>().join(" ")).into_owned()
    }

    /// Counts `<image>` in the human turns.
    pub fn placeholders(&self) -> usize {
        self.turns.iter().map(|turn| turn.user.matches(IMAGE_PLACEHOLDER).count()).sum()
    }
}

impl Turn {
    /// Makes a turn of a question and its answer.
    pub fn answered(user: impl Into<String>, assistant: impl Into<String>) -> Self {
        Self { user: user.into(), assistant: Some(assistant.into()) }
    }

    /// Makes a turn of a question that the model is to answer.
    pub fn open(user: impl Into<String>) -> Self {
        Self { user: user.into(), assistant: None }
    }
}

/// Stands between the `<` and the `image>` of text that means itself and no image. Unicode promises that it is no
/// character, so no text has it; tokenizers here leave it out.
const LITERAL_MARK: char = '\u{fdd0}';

/// Text in which every `\<image>` stands for the letters `<image>`, as they are read from data: marked, so that no
/// template takes them for an image.
pub fn with_literal_images(text: &str) -> Cow<'_, str> {
    if !text.contains("\\<image>") {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\\<image>", &format!("<{LITERAL_MARK}image>")))
}

/// Text that means itself wherever it has `<image>`, so that [`with_literal_images`] gives it back.
pub fn escape_images(text: &str) -> Cow<'_, str> {
    if !text.contains(IMAGE_PLACEHOLDER) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.replace("\\<image>", IMAGE_PLACEHOLDER).replace(IMAGE_PLACEHOLDER, "\\<image>"))
}

/// Text as it is meant: without the marks of [`with_literal_images`].
pub fn plain_text(text: &str) -> Cow<'_, str> {
    match text.contains(LITERAL_MARK) {
        true => Cow::Owned(text.replace(LITERAL_MARK, "")),
        false => Cow::Borrowed(text),
    }
}
