//! What people's records look like: every form that is read, every mistake that is listed, and nothing lost silently.

use std::path::Path;
use std::sync::Arc;

use dualspeed_data::{
    Conversation, DataError, ExampleSource, FitMode, IMAGE_TOKEN_INDEX, ImageProcessor, LlavaJson,
    LlavaJsonConfig, OnError, RecordProblem, Template, TextTokenizer, Turn,
};
use serde_json::{Value, json};

const WORDS: [&str; 14] = [
    "what", "is", "this", "cat", "dog", "blue", "colour", "image", "be", "brief", "and", "two",
    "a", "b",
];

fn config(root: &Path, on_error: OnError) -> LlavaJsonConfig {
    LlavaJsonConfig {
        image_root: root.to_path_buf(),
        template: Template::Qa,
        system: None,
        max_length: None,
        processor: ImageProcessor::clip(8, FitMode::Resize),
        tiles: None,
        on_error,
    }
}

/// A folder with two pictures, `a.png` and `b c.png`.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, colour) in [("a.png", [255, 0, 0]), ("b c.png", [0, 0, 255])] {
        let picture = image::RgbImage::from_pixel(4, 2, image::Rgb(colour));
        picture.save(folder.path().join(name)).unwrap();
    }
    folder
}

fn open(folder: &Path, text: &str, on_error: OnError) -> Result<LlavaJson, DataError> {
    let path = folder.join("data.json");
    std::fs::write(&path, text).unwrap();
    let tokenizer = Arc::new(TextTokenizer::from_words(WORDS).unwrap());
    LlavaJson::open(path, config(folder, on_error), tokenizer)
}

fn open_records(folder: &Path, records: &[Value]) -> LlavaJson {
    open(folder, &json!(records).to_string(), OnError::Stop).unwrap_or_else(|e| panic!("{e}"))
}

fn messages(content: Value) -> Value {
    json!({"messages": [
        {"role": "user", "content": content},
        {"role": "assistant", "content": [{"type": "text", "text": "cat", "image": null}]},
    ]})
}

#[test]
fn every_form_of_a_record_gives_the_same_example() {
    let folder = folder();
    let bytes = std::fs::read(folder.path().join("a.png")).unwrap();
    let base64 = {
        use base64::Engine;
        base64::engine::general_purpose::STANDARD.encode(&bytes)
    };
    let llava = json!({"id": "x", "image": "a.png", "conversations": [
        {"from": "human", "value": "<image>\nwhat is this"}, {"from": "gpt", "value": "cat"}]});
    let text = || json!({"type": "text", "text": "what is this"});
    let with = |part: Value| messages(json!([part, text()]));
    let listed = |images: Value, mut record: Value| {
        record["images"] = images;
        record
    };
    let plain = messages(json!("<image>\nwhat is this"));
    let forms = [
        llava,
        json!({"image": "a.png", "conversations": [
            {"from": "user", "value": "<image>\nwhat is this"},
            {"from": "assistant", "value": "cat"}]}),
        listed(json!(["a.png"]), plain.clone()),
        listed(json!("a.png"), plain.clone()),
        listed(json!([{"path": "a.png", "bytes": null}]), plain.clone()),
        listed(json!([{"path": "lost.png", "bytes": base64.clone()}]), plain),
        listed(json!(["a.png"]), with(json!({"type": "image"}))),
        listed(json!(["a.png"]), with(json!({"type": "image", "text": null}))),
        with(json!({"type": "image", "image": "a.png"})),
        with(json!({"type": "image", "path": "a.png"})),
        with(json!({"type": "image", "url": "a.png"})),
        with(json!({"type": "image", "base64": base64.clone()})),
        with(json!({"type": "image_url", "image_url": {"url": "a.png", "detail": "low"}})),
        with(
            json!({"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{base64}")}}),
        ),
        with(
            json!({"type": "image", "image": format!("file://{}/a.png", folder.path().display())}),
        ),
    ];
    let source = open_records(folder.path(), &forms);
    let first = source.get(0).unwrap();
    assert_eq!(first.input_ids.iter().filter(|id| **id == IMAGE_TOKEN_INDEX).count(), 1);
    for (index, form) in forms.iter().enumerate().skip(1) {
        let example = source.get(index).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(example.input_ids, first.input_ids, "{form}");
        assert_eq!(example.labels, first.labels);
        assert_eq!(example.images[0].key, first.images[0].key, "{form}");
        assert_eq!(example.id, index.to_string(), "a record without an id has its number");
        let outline = source.outline(index).unwrap();
        assert_eq!((outline.input_ids, outline.images.len()), (first.input_ids.clone(), 1));
    }
    // A name with a blank, as an address.
    let address = format!("file://{}/b%20c.png", folder.path().display());
    let source = open_records(folder.path(), &[with(json!({"type": "image", "url": address}))]);
    assert_eq!(source.get(0).unwrap().images.len(), 1);
}

#[test]
fn system_prompts_and_leading_answers() {
    let folder = folder();
    let turn = |from: &str, value: &str| json!({"from": from, "value": value});
    let (ask, answer) = (turn("human", "what is this"), turn("gpt", "cat"));
    let records = [
        json!({"conversations": [turn("system", "be brief"), ask, answer]}),
        json!({"system": "be brief", "conversations": [ask, answer]}),
        json!({"system_prompt": "be brief", "system": "", "conversations": [ask, answer]}),
        json!({"system": " ", "conversations": [ask, answer]}),
        json!({"conversations": [turn("gpt", "a dog"), ask, answer]}),
    ];
    let source = open_records(folder.path(), &records);
    let said = |system: Option<&str>| {
        Some(Conversation {
            system: system.map(Into::into),
            turns: vec![Turn::answered("what is this", "cat")],
        })
    };
    for index in 0..3 {
        assert_eq!(source.conversation(index), said(Some("be brief")));
    }
    assert_eq!(source.conversation(3), said(None));
    assert_eq!(source.conversation(4), said(None));
    let notes = source.notes().unwrap();
    assert_eq!((notes.begin_with_answer, notes.roles["gpt"], notes.roles["system"]), (1, 6, 1));
    assert!(notes.sentences()[0].contains("1 record(s) begin with an answer"));
}

#[test]
fn the_letters_of_the_placeholder_can_be_meant() {
    let folder = folder();
    let records = [
        json!({"conversations": [
            {"from": "human", "value": "what is \\<image> and this"},
            {"from": "gpt", "value": "a \\<image>"}]}),
        // Among parts an image is a part of its own.
        messages(
            json!([{"type": "image", "image": "a.png"}, {"type": "text", "text": "what is <image>"}]),
        ),
    ];
    let source = open_records(folder.path(), &records);
    let tokenizer = source.tokenizer().unwrap();
    let first = source.get(0).unwrap();
    assert!(first.images.is_empty() && !first.input_ids.contains(&IMAGE_TOKEN_INDEX));
    assert_eq!(first.prompt, "what is <image> and this");
    let image = tokenizer.token_to_id("image").unwrap();
    assert_eq!(first.input_ids.iter().filter(|id| **id == image).count(), 2);
    assert_eq!(first.labels.iter().filter(|id| **id == image).count(), 1);
    let second = source.get(1).unwrap();
    assert_eq!(second.input_ids.iter().filter(|id| **id == IMAGE_TOKEN_INDEX).count(), 1);
    assert!(second.input_ids.contains(&image));
}

#[test]
fn all_mistakes_are_listed_with_line_id_and_kind() {
    let folder = folder();
    let pair = |ask: &str, answer: &str| json!([{"from": "human", "value": ask}, {"from": "gpt", "value": answer}]);
    let cases: Vec<(Value, &str)> = vec![
        (json!({"id": 0, "conversations": pair("what", "cat")}), ""),
        (json!({"id": 1, "conversations": pair("what", " ")}), "empty answer"),
        (
            json!({"id": 2, "image": "a.png", "conversations": pair("what", "cat")}),
            "<image> and images differ in number",
        ),
        (
            json!({"id": 3, "image": "gone.png", "conversations": pair("<image>", "cat")}),
            "image is missing",
        ),
        (
            json!({"id": 4, "video": "a.mp4", "conversations": pair("what", "cat")}),
            "key with data that has no effect",
        ),
        (
            json!({"id": 5, "Image": "a.png", "conversations": pair("what", "cat")}),
            "key with data that has no effect",
        ),
        (json!({"id": 6, "conversation": pair("what", "cat")}), "key with data that has no effect"),
        (
            json!({"id": 7, "conversations": pair("what", "cat <image>")}),
            "<image> outside of a human turn",
        ),
        (
            json!({"id": 8, "image": "https://x.org/a.png", "conversations": pair("<image>", "cat")}),
            "image is an address",
        ),
        (
            json!({"id": 9, "images": ["a.png"], "image": "a.png", "conversations": pair("<image>", "cat")}),
            "two keys for one thing",
        ),
        (json!({"id": 10, "conversations": [{"from": "robot", "value": "what"}]}), "unknown role"),
        (json!({"id": 11, "conversations": [{"from": "human", "value": "what"}]}), "no answer"),
        (
            json!({"id": 12, "conversations": [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]}),
            "turn out of order",
        ),
        (json!({"id": 13, "conversations": [{"from": "human", "value": 7}]}), "wrong shape"),
        (
            json!({"id": 14, "messages": [{"role": "user", "content": [{"type": "video", "video": "a"}]}]}),
            "key with data that has no effect",
        ),
        (
            json!({"id": 15, "messages": [{"role": "user", "content": "what"}, {"role": "assistant", "content": "cat", "weight": 0}]}),
            "key with data that has no effect",
        ),
        (json!({"id": 16, "image": "", "conversations": pair("<image>", "cat")}), "wrong shape"),
        (
            json!({"id": 17, "image": ".", "conversations": pair("<image>", "cat")}),
            "image cannot be read",
        ),
        (json!([1]), "wrong shape"),
        (
            json!({"id": 19, "videos": [], "audio": null, "tools": "[]", "model": "x", "conversations": pair("what", "cat")}),
            "",
        ),
    ];
    let mut lines: Vec<String> = cases.iter().map(|(record, _)| record.to_string()).collect();
    lines.push("{\"id\": 20, \"conversations\": [}".into());
    let text = lines.join("\n");
    let source = open(folder.path(), &text, OnError::Skip).unwrap();
    assert_eq!(source.len(), lines.len());
    for (index, (record, kind)) in cases.iter().enumerate() {
        match (source.get(index), *kind) {
            (Ok(_), "") => {}
            (Ok(_), kind) => panic!("{record}: {kind} not found"),
            (Err(error), kind) => {
                assert_eq!(error.kind(), kind, "{error}");
                let message = error.to_string();
                assert!(
                    message.contains(&format!("data.json:{}: record {index}", index + 1)),
                    "{message}"
                );
                let id = record.get("id").map_or_else(|| index.to_string(), Value::to_string);
                assert_eq!(source.id(index), id, "{message}");
            }
        }
    }
    assert_eq!(source.get(20).err().unwrap().kind(), "malformed JSON");
    assert_eq!(
        source.notes().unwrap().unread_keys.iter().collect::<Vec<_>>(),
        [(&"model".to_owned(), &1)]
    );
    // Where the run is to stop, all are in the error.
    let error = open(folder.path(), &text, OnError::Stop).err().unwrap();
    let DataError::Several(bad) = &error else { panic!("{error}") };
    assert_eq!((bad.bad, bad.of, bad.listed.len()), (19, 21, 19));
    let message = error.to_string();
    assert!(message.contains("data.json: 19 of 21 records cannot be used"), "{message}");
    for part in [
        "data.json:2: record 1 (id \"1\")",
        "data.json:6: record 5",
        "did you mean \"image\"",
        "data.json:21:",
    ] {
        assert!(message.contains(part), "no {part:?} in {message}");
    }
    // More than a screenful are counted.
    let many = vec![lines[1].clone(); 50].join("\n");
    let message = open(folder.path(), &many, OnError::Stop).err().unwrap().to_string();
    assert!(message.contains("50 of 50") && message.contains("and 30 more"), "{message}");
    assert_eq!(message.lines().count(), 22);
}

#[test]
fn files_that_are_no_list_are_one_mistake() {
    let folder = folder();
    let refused = |text: &str| open(folder.path(), text, OnError::Stop).err().unwrap();
    let spread = "{\n \"data\": [\n  1,\n  2\n ]\n}\n";
    assert!(matches!(refused(spread), DataError::Json { line: 1, .. }));
    let after = "[{\"id\": 1, \"conversations\": []}] x";
    let error = refused(after).to_string();
    assert!(error.contains("no answer") && error.contains("the file goes on"), "{error}");
    let closed = "[{\"id\": 1]}]";
    assert!(matches!(refused(closed), DataError::Json { line: 1, column: 10, .. }));
    assert!(matches!(refused("[1, , 2]"), DataError::Several(_)));
    assert_eq!(open(folder.path(), "", OnError::Stop).unwrap().len(), 0);
    assert_eq!(open(folder.path(), " [ ] ", OnError::Stop).unwrap().len(), 0);
    let folder_as_file = LlavaJson::open(
        folder.path(),
        config(folder.path(), OnError::Stop),
        Arc::new(TextTokenizer::from_words(WORDS).unwrap()),
    );
    assert!(matches!(folder_as_file, Err(DataError::Read { .. })));
}

#[test]
fn records_are_found_wherever_pieces_of_the_file_end() {
    let folder = folder();
    // More than one piece of 16 MiB, with text that has brackets, quotes, backslashes and line breaks in it.
    let hard = "a \\\" ] } , [ { \u{e9}\u{1f600} \\\\ ".repeat(20);
    let record = |index: usize| {
        let pad = &hard[..hard.char_indices().nth(index % hard.chars().count()).unwrap().0];
        json!({"id": index, "conversations": [
            {"from": "human", "value": format!("{pad} what\n{index}")}, {"from": "gpt", "value": "cat"}]})
    };
    let count = 50_000;
    let mut text = String::from("\u{feff}[");
    for index in 0..count {
        if index > 0 {
            text += if index % 3 == 0 { ",\n\n  " } else { "," };
        }
        text += &record(index).to_string();
    }
    text += "\n]\n";
    assert!(text.len() > 17 << 20, "{}", text.len());
    let source = open(folder.path(), &text, OnError::Stop).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(source.len(), count);
    for index in (0..count).step_by(97).chain([count - 1]) {
        let conversation = source.conversation(index).unwrap();
        let expected = record(index);
        assert_eq!(
            conversation.turns[0].user,
            expected["conversations"][0]["value"].as_str().unwrap()
        );
        assert_eq!(source.id(index), index.to_string());
        // No example is longer than what is said of it before it is read.
        let ids = source.outline(index).unwrap().input_ids.len();
        assert!(source.length_bound(index).unwrap().ids >= ids);
    }
}

#[test]
fn a_file_that_changes_while_in_use_is_noticed() {
    let folder = folder();
    let record = |answer: &str| {
        json!([{"id": 1, "conversations": [
            {"from": "human", "value": "what"}, {"from": "gpt", "value": answer}]}])
    };
    let source = open(folder.path(), &record("cat").to_string(), OnError::Stop).unwrap();
    source.get(0).unwrap();
    std::fs::write(folder.path().join("data.json"), record("dog").to_string()).unwrap();
    let error = source.get(0).err().unwrap();
    assert!(matches!(error.problem(), Some(RecordProblem::Changed)), "{error}");
}
