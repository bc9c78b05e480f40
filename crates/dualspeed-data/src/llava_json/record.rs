//! One record: from JSON to a conversation and its images, checked.

use std::borrow::Cow;
use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::content::{self, Content};
use super::image::ImageSource;
use super::keys;
use super::value::Value;
use crate::error::RecordProblem;
use crate::text::{Conversation, IMAGE_PLACEHOLDER, Turn, with_literal_images};

/// A record that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Its `id`; `None` where it has none.
    pub id: Option<String>,
    /// Its images in the order of their placeholders.
    pub images: Vec<ImageSource>,
    /// What is said. The system prompt is `None` where the record has none.
    pub conversation: Conversation,
    pub notes: Notes,
}

/// What a reader should hear of, though it is no mistake.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Notes {
    /// Keys that are not read.
    pub unread: Vec<String>,
    /// Whether the conversation begins with an answer, which is left out, as LLaVA's own trainer does.
    pub begins_with_answer: bool,
    /// Turns by role, as written.
    pub roles: BTreeMap<String, usize>,
}

impl Record {
    /// Digest of all that is learned from, the id left out if `id` is false: equal for equal content, however it is written.
    pub fn digest(&self, id: bool) -> u64 {
        let mut hash = Sha256::new();
        let mut put = |kind: u8, text: &str| {
            hash.update([kind]);
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        if let Some(id) = self.id.as_ref().filter(|_| id) {
            put(0, id);
        }
        if let Some(system) = &self.conversation.system {
            put(1, system);
        }
        for turn in &self.conversation.turns {
            put(2, &turn.user);
            put(3, turn.assistant.as_deref().unwrap_or_default());
        }
        for image in &self.images {
            match image {
                ImageSource::File(name) => put(4, name),
                ImageSource::Embedded(data) => put(5, data),
            }
        }
        let digest = hash.finalize();
        digest[..8].iter().fold(0, |key, &byte| (key << 8) | u64::from(byte))
    }

    /// Bytes of all text; three times as many where it is not all ASCII.
    pub fn bytes(&self) -> usize {
        let size = |text: &str| if text.is_ascii() { text.len() } else { 3 * text.len() };
        let Conversation { system, turns } = &self.conversation;
        let of_turn = |turn: &Turn| size(&turn.user) + turn.assistant.as_deref().map_or(0, size);
        system.as_deref().map_or(0, size) + turns.iter().map(of_turn).sum::<usize>()
    }

    /// Words of all turns.
    pub fn words(&self) -> usize {
        let words = |text: &str| text.split_ascii_whitespace().count();
        let turns = self.conversation.turns.iter();
        turns.map(|turn| words(&turn.user) + turn.assistant.as_deref().map_or(0, words)).sum()
    }
}

/// Reads a record.
///
/// # Errors
/// The first thing that is wrong with it, and its id if it has one.
pub(super) fn read(value: &Value<'_>) -> Result<Record, (Option<String>, RecordProblem)> {
    let Value::Object(entries) = value else {
        let reason = format!("a record must be an object, this is {}", value.type_name());
        return Err((None, RecordProblem::Shape { reason }));
    };
    let id = entries.iter().find(|(key, _)| key == "id").and_then(|(_, value)| value.as_id());
    read_object(entries, id.clone()).map_err(|problem| (id, problem))
}

fn read_object(
    entries: &[(Cow<'_, str>, Value<'_>)],
    id: Option<String>,
) -> Result<Record, RecordProblem> {
    let mut notes = Notes::default();
    let mut known: BTreeMap<&str, &Value<'_>> = BTreeMap::new();
    for (key, value) in entries {
        if !keys::RECORD.contains(&&**key) {
            keys::check(key, key, value, &keys::RECORD)?;
            if !value.is_empty() {
                notes.unread.push(key.to_string());
            }
        } else if known.insert(key, value).is_some() {
            return Err(RecordProblem::Twice { first: key.to_string(), second: key.to_string() });
        }
    }
    let given = |key: &'static str| known.get(key).filter(|value| !matches!(value, Value::Null));
    let one_of = |first: &'static str, second: &'static str| {
        let full = |key| given(key).filter(|value| !value.is_empty());
        match (full(first), full(second)) {
            (Some(_), Some(_)) => {
                Err(RecordProblem::Twice { first: first.into(), second: second.into() })
            }
            (Some(value), None) => Ok(Some((first, *value))),
            (None, Some(value)) => Ok(Some((second, *value))),
            // Empty, but there: an empty name of an image is not the same as none.
            (None, None) => Ok(given(first)
                .map(|value| (first, *value))
                .or(given(second).map(|value| (second, *value)))),
        }
    };
    let mut files = match one_of("image", "images")? {
        None => Vec::new(),
        Some((key, value)) => content::images(key, value)?,
    };
    let Some((key, turns)) = one_of("conversations", "messages")? else {
        let reason = "missing field `conversations` (or `messages`)".into();
        return Err(RecordProblem::Shape { reason });
    };
    let Value::List(turns) = turns else {
        let reason = format!("{key:?} must be a list of turns, this is {}", turns.type_name());
        return Err(RecordProblem::Shape { reason });
    };
    let system = match one_of("system", "system_prompt")? {
        None => None,
        Some((_, Value::Text(text))) => {
            Some(text.to_string()).filter(|text| !text.trim().is_empty())
        }
        Some((key, value)) => {
            let reason = format!("{key:?} must be text, this is {}", value.type_name());
            return Err(RecordProblem::Shape { reason });
        }
    };
    let mut reader = Turns { system, first: true, ..Turns::default() };
    for (number, turn) in turns.iter().enumerate() {
        reader.add(number, turn, &mut notes)?;
    }
    let (conversation, inline) = reader.finish()?;
    // Images in the text itself stand where they are; the others are taken in order.
    let placeholders = inline.len();
    let bare = inline.iter().filter(|image| image.is_none()).count();
    if bare != files.len() {
        let files = files.len() + placeholders - bare;
        return Err(RecordProblem::PlaceholderMismatch { placeholders, files });
    }
    let mut rest = files.drain(..);
    let images = inline.into_iter().filter_map(|image| image.or_else(|| rest.next())).collect();
    Ok(Record { id, images, conversation, notes })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    System,
    Human,
    Model,
}

fn role_of(name: &str) -> Option<Role> {
    match name {
        "system" => Some(Role::System),
        "human" | "user" => Some(Role::Human),
        // ShareGPT names the model that a conversation was had with.
        "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => Some(Role::Model),
        _ => None,
    }
}

/// A conversation turn by turn.
#[derive(Default)]
struct Turns {
    system: Option<String>,
    turns: Vec<Turn>,
    /// One entry per `<image>`: what it shows, or `None` where the record's list of images says.
    images: Vec<Option<ImageSource>>,
    /// Whether no human or model has said anything yet.
    first: bool,
}

impl Turns {
    fn add(
        &mut self,
        number: usize,
        value: &Value<'_>,
        notes: &mut Notes,
    ) -> Result<(), RecordProblem> {
        let (name, content) = read_turn(number, value, notes)?;
        let unknown = || RecordProblem::UnknownRole { turn: number, role: name.to_owned() };
        let role = role_of(name).ok_or_else(unknown)?;
        *notes.roles.entry(name.to_owned()).or_default() += 1;
        let Content { text, images } = content::read(number, content)?;
        let text = with_literal_images(&text).into_owned();
        if role != Role::Human && text.contains(IMAGE_PLACEHOLDER) {
            return Err(RecordProblem::PlaceholderInAnswer { turn: number, role: name.to_owned() });
        }
        let answered = self.turns.last().is_none_or(|turn| turn.assistant.is_some());
        let out_of_turn =
            |expected| RecordProblem::OutOfTurn { turn: number, role: name.to_owned(), expected };
        match role {
            Role::System if !self.first => return Err(out_of_turn("human")),
            Role::System => {
                if self.system.as_ref().is_some_and(|system| *system != text) {
                    let (first, second) = ("system".into(), format!("turn {number} from system"));
                    return Err(RecordProblem::Twice { first, second });
                }
                self.system = Some(text);
                return Ok(());
            }
            Role::Human if answered => {
                self.images.extend(images);
                self.turns.push(Turn::open(text));
            }
            Role::Human => return Err(out_of_turn("gpt")),
            Role::Model if self.first => {
                notes.begins_with_answer = true;
            }
            Role::Model if answered => return Err(out_of_turn("human")),
            Role::Model if text.trim().is_empty() => {
                return Err(RecordProblem::EmptyAnswer { turn: number });
            }
            Role::Model => {
                if let Some(last) = self.turns.last_mut() {
                    last.assistant = Some(text);
                }
            }
        }
        self.first = false;
        Ok(())
    }

    fn finish(self) -> Result<(Conversation, Vec<Option<ImageSource>>), RecordProblem> {
        if self.turns.last().is_none_or(|turn| turn.assistant.is_none()) {
            return Err(RecordProblem::NoAnswer);
        }
        Ok((Conversation { system: self.system, turns: self.turns }, self.images))
    }
}

/// Role and content of a turn; a value that is not there is null.
fn read_turn<'v, 'a>(
    number: usize,
    value: &'v Value<'a>,
    notes: &mut Notes,
) -> Result<(&'v str, &'v Value<'a>), RecordProblem> {
    let shape = |reason: String| RecordProblem::Shape { reason };
    let Value::Object(entries) = value else {
        return Err(shape(format!(
            "turn {number} must be an object, this is {}",
            value.type_name()
        )));
    };
    let (mut role, mut content) = (None, None);
    for (key, value) in entries {
        let place: &mut Option<(&str, &Value<'_>)> = match &**key {
            "from" | "role" => &mut role,
            "value" | "content" => &mut content,
            _ => {
                let path = format!("turn {number}: {key}");
                keys::check(&path, key, value, &keys::TURN)?;
                if keys::RECORD[1..].contains(&&**key) && !value.is_empty() {
                    let advice = "it belongs to the record, not to a turn".into();
                    return Err(RecordProblem::IgnoredData { key: path, advice });
                }
                if !value.is_empty() {
                    notes.unread.push(format!("turn: {key}"));
                }
                continue;
            }
        };
        match place {
            Some((first, other)) if *other != value => {
                return Err(RecordProblem::Twice {
                    first: (*first).to_owned(),
                    second: key.to_string(),
                });
            }
            _ => *place = Some((key, value)),
        }
    }
    let missing = |names: &str| shape(format!("turn {number} has no {names}"));
    let (_, role) = role.ok_or_else(|| missing("\"from\" (or \"role\")"))?;
    let (_, content) = content.ok_or_else(|| missing("\"value\" (or \"content\")"))?;
    match role {
        Value::Text(role) => Ok((role, content)),
        other => {
            Err(shape(format!("the role of turn {number} is {}, not text", other.type_name())))
        }
    }
}
