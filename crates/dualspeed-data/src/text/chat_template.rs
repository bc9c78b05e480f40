//! Chat templates in Jinja, as checkpoints of Hugging Face bring them.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::path::Path;
use std::sync::Arc;

use minijinja::{Environment, Value};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::date::Date;
use super::jinja;
use crate::error::EncodeError;

/// A chat template: Jinja text that writes a list of messages out, compiled.
///
/// It is rendered as transformers renders it: `trim_blocks` and `lstrip_blocks`, loop controls, Python's methods of strings
/// and dictionaries, `raise_exception`, `strftime_now`, `tojson` without HTML escapes, and `{% generation %}` around what the
/// model says. Clones share one compiled template.
#[derive(Clone)]
pub struct ChatTemplate(Arc<Compiled>);

struct Compiled {
    jinja: String,
    /// The day that `strftime_now` tells, where the template asks.
    date: Option<Date>,
    environment: Environment<'static>,
    content: Content,
    generation: bool,
}

/// What a template takes a message's `content` for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// A list of parts: `{"type": "text", "text": ".."}` and `{"type": "image"}`.
    Parts,
    /// A string; images are written into it.
    Text,
}

/// The word that a template must write out to show that it takes a kind of content.
const PROBE: &str = "probe";

/// What errors call a template without a name.
const UNNAMED: &str = "chat template";

impl ChatTemplate {
    /// Compiles a template; `strftime_now` tells today's date (UTC).
    ///
    /// # Errors
    /// [`EncodeError::Template`] if it is no Jinja, asks for what is not known here, or writes no message out.
    pub fn new(jinja: impl Into<String>) -> Result<Self, EncodeError> {
        Self::on(jinja, None)
    }

    /// Reads a `.jinja` file and compiles it.
    ///
    /// # Errors
    /// [`EncodeError::Template`] if the file cannot be read, or as [`ChatTemplate::new`].
    pub fn read(path: &Path) -> Result<Self, EncodeError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| template_error(&name, error.to_string()))?;
        Self::new(text).map_err(|error| error.in_template(&name))
    }

    fn on(jinja: impl Into<String>, date: Option<Date>) -> Result<Self, EncodeError> {
        // Python reads text with every line end as "\n".
        let jinja = jinja.into().replace("\r\n", "\n");
        let date = match jinja.contains("strftime_now") {
            true => Some(date.unwrap_or_else(Date::today)),
            false => None,
        };
        let (environment, generation) = jinja::compile(&jinja, date)
            .map_err(|error| template_error(UNNAMED, jinja::describe(&error)))?;
        let mut compiled =
            Compiled { jinja, date, environment, content: Content::Parts, generation };
        compiled.content = compiled.find_content()?;
        Ok(Self(Arc::new(compiled)))
    }

    /// The text of the template.
    pub fn jinja(&self) -> &str {
        &self.0.jinja
    }

    /// Whether it marks what the model says with `{% generation %}`.
    pub(super) fn marks_generation(&self) -> bool {
        self.0.generation
    }

    /// What it takes a message's `content` for.
    pub(super) fn content(&self) -> Content {
        self.0.content
    }

    /// Writes messages out, with [`GENERATION`](super::marks::GENERATION) around what `{% generation %}` marks. `tokens` are the special tokens by
    /// their names in `tokenizer_config.json`.
    pub(super) fn render(
        &self,
        messages: Vec<Value>,
        tokens: &Value,
        add_generation_prompt: bool,
    ) -> Result<String, EncodeError> {
        let rendered = self.0.render(messages, tokens, add_generation_prompt);
        rendered.map_err(|error| template_error(UNNAMED, jinja::describe(&error)))
    }
}

impl Compiled {
    fn render(
        &self,
        messages: Vec<Value>,
        tokens: &Value,
        add_generation_prompt: bool,
    ) -> Result<String, minijinja::Error> {
        let context = minijinja::context! {
            messages, add_generation_prompt, tools => (), documents => (), ..tokens.clone()
        };
        self.environment.get_template(jinja::NAME)?.render(context)
    }

    /// Tries both kinds of content. A template for text writes a list out as a list; one for parts finds none in a string.
    fn find_content(&self) -> Result<Content, EncodeError> {
        let message = |role: &str, content: &Value| {
            Value::from_pairs([("role", Value::from(role)), ("content", content.clone())])
        };
        // A template may leave out what the user says, but not all of it.
        let messages =
            |content: Value| vec![message("user", &content), message("assistant", &content)];
        let tokens =
            Value::from_pairs(["bos_token", "eos_token"].map(|name| (name, Value::from(""))));
        let part = Value::from_pairs([("type", Value::from("text")), ("text", Value::from(PROBE))]);
        let parts = self.render(messages(Value::from(vec![part])), &tokens, false);
        let text = self.render(messages(Value::from(PROBE)), &tokens, false);
        match (parts, text) {
            (Ok(parts), _) if parts.contains(PROBE) && !parts.contains("\"type\"") => {
                Ok(Content::Parts)
            }
            (_, Ok(text)) if text.contains(PROBE) => Ok(Content::Text),
            (Err(error), Err(_)) => Err(template_error(UNNAMED, jinja::describe(&error))),
            _ => Err(template_error(UNNAMED, "it writes out nothing that is said".into())),
        }
    }
}

impl ChatTemplate {
    /// Finds the system prompt that the template puts where none is given.
    pub(super) fn own_system(&self, tokens: &Value) -> Option<String> {
        const SYSTEM: &str = "system-probe";
        let content = |text: &str| match self.content() {
            Content::Text => Value::from(text),
            Content::Parts => Value::from(vec![Value::from_pairs([
                ("type", Value::from("text")),
                ("text", Value::from(text)),
            ])]),
        };
        let message = |role: &str, text: &str| {
            Value::from_pairs([("role", Value::from(role)), ("content", content(text))])
        };
        let without = self.render(vec![message("user", "probe")], tokens, false).ok()?;
        let with = vec![message("system", SYSTEM), message("user", "probe")];
        let with = self.render(with, tokens, false).ok()?;
        let (before, after) = with.split_once(SYSTEM)?;
        let own = without.strip_prefix(before)?.strip_suffix(after)?;
        (!own.is_empty()).then(|| own.to_owned())
    }
}

/// An error of the template that `name` names.
pub(super) fn template_error(name: &str, problem: String) -> EncodeError {
    EncodeError::Template { name: name.to_owned(), problem }
}

impl EncodeError {
    /// The same error, of a template that is now known by name.
    pub(super) fn in_template(self, file: &str) -> Self {
        match self {
            Self::Template { problem, .. } => template_error(file, problem),
            other => other,
        }
    }
}

impl PartialEq for ChatTemplate {
    fn eq(&self, other: &Self) -> bool {
        (&self.0.jinja, self.0.date) == (&other.0.jinja, other.0.date)
    }
}

impl Eq for ChatTemplate {}

impl Hash for ChatTemplate {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.0.jinja, self.0.date).hash(state);
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("jinja", &self.0.jinja)
            .field("date", &self.0.date)
            .finish()
    }
}

impl fmt::Display for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a chat template of {} bytes", self.0.jinja.len())
    }
}

/// A template in a configuration, with the day that it was taken on if it tells one: the run says the same on any day.
#[derive(Serialize, Deserialize)]
#[serde(rename = "ChatTemplate", deny_unknown_fields)]
struct Written {
    jinja: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    date: Option<Date>,
}

impl Serialize for ChatTemplate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Written { jinja: self.0.jinja.clone(), date: self.0.date }.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ChatTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written { jinja, date } = Written::deserialize(deserializer)?;
        Self::on(jinja, date).map_err(de::Error::custom)
    }
}
