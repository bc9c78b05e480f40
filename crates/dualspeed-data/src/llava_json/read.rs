//! Parsing and checking records, keeping track of their lines.

use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::Record;
use crate::error::{DataError, RecordProblem};
use crate::text::{Conversation, IMAGE_PLACEHOLDER, Turn};

#[derive(Deserialize)]
struct RawRecord {
    #[serde(default)]
    id: serde_json::Value,
    #[serde(default)]
    image: Files,
    conversations: Vec<RawTurn>,
}

#[derive(Deserialize)]
struct RawTurn {
    from: String,
    value: String,
}

#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Files {
    #[default]
    None,
    One(String),
    Many(Vec<String>),
}

/// Every record of a file; an array if its first character is a bracket, else one record a line.
pub(super) fn records(path: &Path, bytes: &[u8]) -> Result<Vec<Record>, DataError> {
    let json_error = |line: usize, column: usize, reason: String| DataError::Json {
        path: path.to_path_buf(),
        line,
        column,
        reason,
    };
    let text = std::str::from_utf8(bytes).map_err(|e| {
        let before = &bytes[..e.valid_up_to()];
        let line = 1 + count_lines(before);
        let column = 1 + before.iter().rev().take_while(|&&byte| byte != b'\n').count();
        json_error(line, column, "the file is not UTF-8 here".to_string())
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut records = Vec::new();
    if text.trim_start().starts_with('[') {
        let raws: Vec<&RawValue> = serde_json::from_str(text)
            .map_err(|e| json_error(e.line(), e.column(), strip_position(&e)))?;
        let (mut line, mut seen) = (1, 0);
        for raw in raws {
            // Raw values borrow from the text, so their addresses say where they stand.
            let offset = raw.get().as_ptr() as usize - text.as_ptr() as usize;
            line += count_lines(&text.as_bytes()[seen..offset]);
            seen = offset;
            records.push(record(path, line, records.len(), raw.get())?);
        }
    } else {
        for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
            let raw: &RawValue = serde_json::from_str(line)
                .map_err(|e| json_error(number + 1, e.column(), strip_position(&e)))?;
            records.push(record(path, number + 1, records.len(), raw.get())?);
        }
    }
    Ok(records)
}

fn count_lines(bytes: &[u8]) -> usize {
    bytes.iter().filter(|&&byte| byte == b'\n').count()
}

/// serde_json's message without its own "at line 1 column 7", which would be of the record, not of the file.
fn strip_position(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.split(" at line ").next().unwrap_or_default().to_string()
}

fn record(path: &Path, line: usize, number: usize, text: &str) -> Result<Record, DataError> {
    let fail = |id: &str, problem: RecordProblem| DataError::Record {
        path: path.to_path_buf(),
        line,
        record: number,
        id: id.to_string(),
        problem: Box::new(problem),
    };
    let raw: RawRecord = serde_json::from_str(text)
        .map_err(|e| fail(&id_of(text), RecordProblem::Shape { reason: strip_position(&e) }))?;
    let id = match &raw.id {
        serde_json::Value::Null => number.to_string(),
        serde_json::Value::String(id) => id.clone(),
        other => other.to_string(),
    };
    let images = match raw.image {
        Files::None => Vec::new(),
        Files::One(name) => vec![name],
        Files::Many(names) => names,
    };
    let conversation =
        conversation(raw.conversations, images.len()).map_err(|problem| fail(&id, problem))?;
    Ok(Record { line, id, images, conversation })
}

/// The id of a record of the wrong shape, for its error.
fn id_of(text: &str) -> String {
    #[derive(Deserialize)]
    struct OnlyId {
        #[serde(default)]
        id: serde_json::Value,
    }
    match serde_json::from_str(text) {
        Ok(OnlyId { id: serde_json::Value::String(id) }) => id,
        Ok(OnlyId { id: serde_json::Value::Null }) | Err(_) => "?".to_string(),
        Ok(OnlyId { id }) => id.to_string(),
    }
}

fn conversation(raw: Vec<RawTurn>, files: usize) -> Result<Conversation, RecordProblem> {
    let mut turns: Vec<Turn> = Vec::new();
    for (turn, RawTurn { from, value }) in raw.into_iter().enumerate() {
        let human = match from.as_str() {
            "human" | "user" => true,
            "gpt" | "assistant" => false,
            _ => return Err(RecordProblem::UnknownRole { turn, role: from }),
        };
        match (human, turn % 2) {
            (true, 0) => turns.push(Turn::open(value)),
            (false, 1) => {
                if value.trim().is_empty() {
                    return Err(RecordProblem::EmptyAnswer { turn });
                }
                if value.contains(IMAGE_PLACEHOLDER) {
                    return Err(RecordProblem::PlaceholderInAnswer { turn });
                }
                if let Some(last) = turns.last_mut() {
                    last.assistant = Some(value);
                }
            }
            (_, parity) => {
                let expected = if parity == 0 { "human" } else { "gpt" };
                return Err(RecordProblem::OutOfTurn { turn, role: from, expected });
            }
        }
    }
    if turns.last().is_none_or(|turn| turn.assistant.is_none()) {
        return Err(RecordProblem::NoAnswer);
    }
    let conversation = Conversation { system: None, turns };
    match conversation.placeholders() {
        placeholders if placeholders == files => Ok(conversation),
        placeholders => Err(RecordProblem::PlaceholderMismatch { placeholders, files }),
    }
}
