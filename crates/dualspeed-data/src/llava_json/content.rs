//! What a turn says: text, or a list of parts as Hugging Face and OpenAI write them.

use super::image::ImageSource;
use super::value::Value;
use crate::error::RecordProblem;
use crate::text::{IMAGE_PLACEHOLDER, escape_images};

/// What a turn says.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// The text, `<image>` where an image stands.
    pub text: String,
    /// One entry per `<image>`: the image where the turn names it itself.
    pub images: Vec<Option<ImageSource>>,
}

/// Reads what turn `number` says. In a list of parts images are parts of their own, so `<image>` in its text is just
/// that, unless the list names no image at all.
pub(super) fn read(number: usize, value: &Value<'_>) -> Result<Content, RecordProblem> {
    let parts = match value {
        Value::Text(text) => {
            let images = vec![None; placeholders(text)];
            return Ok(Content { text: text.to_string(), images });
        }
        Value::List(parts) => parts,
        // Data sets made as tables have null where a model called a tool.
        other => {
            let reason = format!(
                "turn {number} must say text or a list of parts, this is {}",
                other.type_name()
            );
            return Err(RecordProblem::Shape { reason });
        }
    };
    let parts = parts.iter().filter(|part| !part.is_empty());
    let parts = parts.map(|part| read_part(number, part)).collect::<Result<Vec<_>, _>>()?;
    let names_images = parts.iter().any(|part| matches!(part, Part::Image(_)));
    let mut content = Content::default();
    for (at, part) in parts.iter().enumerate() {
        match part {
            Part::Text(text) if names_images => content.text += &escape_images(text),
            Part::Text(text) => {
                content.images.extend(vec![None; placeholders(text)]);
                content.text += text;
            }
            Part::Image(image) => {
                content.text += IMAGE_PLACEHOLDER;
                content.images.push(image.clone());
                // As LLaVA's templates write the two.
                if matches!(parts.get(at + 1), Some(Part::Text(text)) if !text.starts_with('\n')) {
                    content.text.push('\n');
                }
            }
        }
    }
    Ok(content)
}

/// Counts `<image>` in text, those with a backslash before them left out.
fn placeholders(text: &str) -> usize {
    crate::text::with_literal_images(text).matches(IMAGE_PLACEHOLDER).count()
}

enum Part {
    Text(String),
    /// `None`: the record's list of images says which.
    Image(Option<ImageSource>),
}

fn read_part(number: usize, value: &Value<'_>) -> Result<Part, RecordProblem> {
    let entries = match value {
        Value::Text(text) => return Ok(Part::Text(text.to_string())),
        Value::Object(entries) => entries,
        other => {
            let reason = format!("a part of turn {number} is {}, not an object", other.type_name());
            return Err(RecordProblem::Shape { reason });
        }
    };
    let mut kind = None;
    let mut data = Vec::new();
    for (key, value) in entries.iter().filter(|(_, value)| !value.is_empty()) {
        match (&**key, value) {
            ("type", Value::Text(text)) => kind = Some(&**text),
            // How closely OpenAI's models are to look.
            ("detail" | "cache_control", _) => {}
            _ => data.push((&**key, value)),
        }
    }
    let lost = |key: &str| {
        let key = format!("turn {number}: {key}");
        let advice =
            "a part is {\"type\": \"text\", \"text\": ..} or {\"type\": \"image\", \"image\": ..}"
                .into();
        RecordProblem::IgnoredData { key, advice }
    };
    match (kind, &data[..]) {
        (Some("text" | "input_text" | "output_text") | None, [("text", Value::Text(text))]) => {
            Ok(Part::Text(text.to_string()))
        }
        (Some("text" | "input_text" | "output_text"), []) => Ok(Part::Text(String::new())),
        (Some("image" | "image_url" | "input_image"), []) => Ok(Part::Image(None)),
        (
            Some("image" | "image_url" | "input_image") | None,
            [(key @ ("image" | "image_url" | "url" | "path" | "base64" | "bytes"), value)],
        ) => Ok(Part::Image(Some(image(key, value)?))),
        (
            Some("text" | "input_text" | "output_text" | "image" | "image_url" | "input_image")
            | None,
            data,
        ) => Err(lost(data.last().map_or("type", |(key, _)| key))),
        (Some(kind), _) => Err(lost(kind)),
    }
}

/// The images that `image` or `images` of a record names.
pub(super) fn images(key: &str, value: &Value<'_>) -> Result<Vec<ImageSource>, RecordProblem> {
    match value {
        Value::List(values) => values
            .iter()
            .filter(|value| !matches!(value, Value::Null))
            .map(|value| image(key, value))
            .collect(),
        value => Ok(vec![image(key, value)?]),
    }
}

/// An image by name, or `{"path": ..}`, `{"url": ..}`, `{"bytes": ..}` with Base64.
fn image(key: &str, value: &Value<'_>) -> Result<ImageSource, RecordProblem> {
    let shape = |what: &str| {
        let reason = format!("{key:?} must name an image by path or address, this is {what}");
        RecordProblem::Shape { reason }
    };
    match value {
        Value::Text(text) if matches!(key, "base64" | "bytes") => {
            Ok(ImageSource::Embedded(text.to_string()))
        }
        Value::Text(name) => ImageSource::named(name),
        Value::Object(entries) => {
            let full = entries.iter().filter(|(key, value)| !value.is_empty() && key != "detail");
            let mut full: Vec<_> = full.collect();
            // A table of pictures has both: the bytes, and the name they had.
            if full.iter().any(|(key, _)| key == "bytes") {
                full.retain(|(key, _)| key != "path");
            }
            match full[..] {
                [(inner, value)] if matches!(&**inner, "path" | "url" | "bytes" | "base64") => {
                    match value {
                        Value::Text(_) => image(inner, value),
                        other => Err(shape(other.type_name())),
                    }
                }
                [] => Err(shape("an empty object")),
                _ => Err(shape("an object with other keys than \"path\", \"url\" or \"bytes\"")),
            }
        }
        other => Err(shape(other.type_name())),
    }
}
