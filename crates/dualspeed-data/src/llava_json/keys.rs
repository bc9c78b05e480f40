//! Keys of records and turns: those that are read, those whose data would be lost, and the others.

use dualspeed_core::nearest;

use super::value::Value;
use crate::error::RecordProblem;

/// Keys of a record that are read.
pub(super) const RECORD: [&str; 7] =
    ["id", "image", "images", "conversations", "messages", "system", "system_prompt"];

/// Keys of a turn that are read.
pub(super) const TURN: [&str; 4] = ["from", "value", "role", "content"];

/// Keys, in lower case, of data that a model would have to be given.
const DATA: [&str; 36] = [
    "img",
    "imgs",
    "image_path",
    "image_paths",
    "image_file",
    "image_files",
    "image_url",
    "image_urls",
    "image_base64",
    "images_base64",
    "picture",
    "pictures",
    "photo",
    "photos",
    "video",
    "videos",
    "video_path",
    "video_url",
    "audio",
    "audios",
    "audio_path",
    "audio_url",
    "sound",
    "speech",
    "music",
    "point_cloud",
    "pointcloud",
    "depth",
    "tools",
    "tool_calls",
    "functions",
    "function_call",
    "chosen",
    "rejected",
    "reasoning_content",
    "thinking",
];

/// Keys that say whether a turn is learned from.
const MASKS: [&str; 4] = ["weight", "train", "loss", "loss_mask"];

/// Finds out about a key that is not read: an error if its data would be lost, else nothing. `path` is what the message
/// calls the key, `known` what is read in its place.
pub(super) fn check(
    path: &str,
    key: &str,
    value: &Value<'_>,
    known: &[&str],
) -> Result<(), RecordProblem> {
    if value.is_empty() {
        return Ok(());
    }
    let lost = |advice: String| Err(RecordProblem::IgnoredData { key: path.into(), advice });
    let lower = key.to_lowercase();
    if known.contains(&lower.as_str()) {
        return lost(format!("did you mean {lower:?}?"));
    }
    if MASKS.contains(&lower.as_str()) {
        let learned = match value {
            Value::Bool(learned) => *learned,
            Value::Number(weight) => weight.as_f64() == Some(1.0),
            _ => false,
        };
        let advice = "every answer is learned from; split the conversation, or remove the key";
        return if learned { Ok(()) } else { lost(advice.into()) };
    }
    if DATA.contains(&lower.as_str()) {
        let advice = match lower.as_str() {
            _ if ["im", "pic", "pho"].iter().any(|start| lower.starts_with(start)) => {
                "name images in \"image\" or \"images\""
            }
            _ => "only text and images are read; remove the key, or the record",
        };
        return lost(advice.into());
    }
    // Short words are too like each other to tell a slip from a word of its own.
    let long = known.iter().copied().filter(|known| known.len() >= 5);
    match nearest(&lower, long) {
        Some(known) if is_slip(&lower, &known) => lost(format!("did you mean {known:?}?")),
        _ => Ok(()),
    }
}

/// Whether a word is another with one letter missing, added or wrong, or with two swapped.
fn is_slip(word: &str, known: &str) -> bool {
    let (a, b): (Vec<char>, Vec<char>) = (word.chars().collect(), known.chars().collect());
    if a.len().abs_diff(b.len()) > 1 {
        return false;
    }
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[same..], &b[same..]);
    let rest = |from: usize, other: usize| a.get(from..) == b.get(other..);
    let swapped = a.len() > 1 && b.len() > 1 && a[0] == b[1] && a[1] == b[0] && rest(2, 2);
    rest(1, 1) || rest(1, 0) || rest(0, 1) || swapped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lost(key: &str, value: Value<'_>) -> bool {
        check(key, key, &value, &RECORD).is_err()
    }

    #[test]
    fn data_and_slips_are_lost_and_other_keys_are_not() {
        let text = || Value::Text("x".into());
        for key in [
            "video",
            "Image",
            "IMAGES",
            "audio",
            "imgae",
            "imag",
            "conversation",
            "mesages",
            "tools",
        ] {
            assert!(lost(key, text()), "{key}");
        }
        for key in ["model", "source", "ids", "idx", "width", "message_id", "image_id", "language"]
        {
            assert!(!lost(key, text()), "{key}");
        }
        for value in [Value::Null, Value::Text(" ".into()), Value::List(vec![Value::Null])] {
            assert!(!lost("video", value));
        }
        assert!(lost("train", Value::Bool(false)) && !lost("train", Value::Bool(true)));
        assert!(
            lost("weight", Value::Number(0.into())) && !lost("weight", Value::Number(1.into()))
        );
    }
}
